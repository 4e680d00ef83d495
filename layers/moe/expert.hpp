// SPDX-License-Identifier: Apache-2.0
// One routed expert: a function of rows with a way back, whatever it is made of. The convention of nn/module.hpp, with
// memory of the caller's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layers/nn/ffn.hpp"
#include "layers/router/options.hpp"

namespace cadre {

// What the routed experts of a layer are made of.

struct ExpertOptions {
  FfnOptions ffn = {};  // SwiGLU where kinds are typed, and its width even
  ExpertKinds kinds = ExpertKinds::same;
  int inner_experts = 0;  // of one that is a mixture
  int inner_top_k = 0;
  Projection projection = Projection::gate;  // which of them these experts are, where kinds are projections

  bool is_down() const { return kinds == ExpertKinds::projections && projection == Projection::down; }
  bool is_narrow() const { return kinds == ExpertKinds::projections && projection != Projection::down; }
  // Of a row that comes, and of one that goes.
  int64_t width_in() const { return is_down() ? ffn.width : ffn.hidden; }
  int64_t width_out() const { return is_narrow() ? ffn.width : ffn.hidden; }
  // The global id of expert `id` of the map: the map of a projection counts those of its kind alone.
  int global_id(int id) const { return kinds == ExpertKinds::projections ? 3 * id + static_cast<int>(projection) : id; }
};

// The network of expert `id`, or one of those of a mixture.
FfnOptions ffn_of_expert(const ExpertOptions& options, int id);

// Elements of the weights of expert `id`, and of those that one row meets.
struct ExpertWeights {
  int64_t total = 0;
  int64_t active = 0;
};
ExpertWeights weights_of_expert(const ExpertOptions& options, int id);

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
