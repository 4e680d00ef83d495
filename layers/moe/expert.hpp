// SPDX-License-Identifier: Apache-2.0
// One routed expert: a function of rows with a way back, whatever it is made of. The convention of nn/module.hpp, with
// memory of the caller's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/moe/expert_options.hpp"

namespace cadre {

class Expert {
 public:
  struct Saved {
    virtual ~Saved() = default;
  };

  virtual ~Expert() = default;
  // x, y [R,H]; of a single projection [R,H] and [R,F], or the other way round
  virtual std::unique_ptr<Saved> forward_into(Context& ctx, const Tensor& x, const Tensor& y) const = 0;
  virtual void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const = 0;
  virtual void weight_grad(Context& ctx, const Saved& saved) = 0;
  virtual void each_parameter(const ParameterVisitor& visit) = 0;
  // Moves on whenever one of its weights changes.
  virtual uint64_t version() const = 0;
};

// Expert `id` of a layer; its parameters are named `<prefix>.`...
std::unique_ptr<Expert> make_expert(const std::string& prefix, const ExpertOptions& options, int id);

}  // namespace cadre
