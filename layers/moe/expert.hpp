// SPDX-License-Identifier: Apache-2.0
// One routed expert: a function of rows with a way back, whatever it is made of. The convention of nn/module.hpp, with
// memory of the caller's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/nn/ffn.hpp"

namespace cadre {

// same: a feed-forward network each. typed: three kinds of them that take turns by global id, named for what each does
// most: gate experts (SwiGLU, as `same`), up experts (down(gelu(up x)) of twice the width) and down experts (the same of
// half the width). mixture: each is a mixture of such networks itself (Shazeer et al. 2017, appendix B).
enum class ExpertKinds : uint8_t { same, typed, mixture };

struct ExpertOptions {
  FfnOptions ffn = {};  // SwiGLU where kinds are typed, and its width even
  ExpertKinds kinds = ExpertKinds::same;
  int inner_experts = 0;  // of one that is a mixture
  int inner_top_k = 0;
};

class Expert {
 public:
  struct Saved {
    virtual ~Saved() = default;
  };

  virtual ~Expert() = default;
  // x, y [R,H]
  virtual std::unique_ptr<Saved> forward_into(Context& ctx, const Tensor& x, const Tensor& y) const = 0;
  virtual void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const = 0;
  virtual void weight_grad(Context& ctx, const Saved& saved) = 0;
  virtual void each_parameter(const ParameterVisitor& visit) = 0;
  // Moves on whenever one of its weights changes.
  virtual uint64_t version() const = 0;
};

// Expert `id` of a layer; its parameters are named `<prefix>.`...
std::unique_ptr<Expert> make_expert(const std::string& prefix, const ExpertOptions& options, int id);

// Elements of its weights, and of those that one row meets.
struct ExpertWeights {
  int64_t total = 0;
  int64_t active = 0;
};
ExpertWeights weights_of_expert(const ExpertOptions& options, int id);

}  // namespace cadre
