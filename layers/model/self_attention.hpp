// SPDX-License-Identifier: Apache-2.0
// The attention of a layer: multi-head or latent, as the model has it.
#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "layers/model/config.hpp"
#include "layers/nn/latent_attention.hpp"

namespace cadre {

class SelfAttention {
 public:
  SelfAttention(const std::string& prefix, const ModelConfig& config);

  using Saved = std::variant<CausalAttention::Saved, LatentAttention::Saved>;

  Tensor forward(Context& ctx, const Tensor& x, const Sequences& sequences, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

  KvCache make_cache(Context& ctx, int64_t batch, int64_t capacity) const;
  Tensor decode(Context& ctx, const Tensor& x, const NextTokens& tokens, const KvCache& cache) const;

 private:
  std::variant<CausalAttention, LatentAttention> attention_;
};

}  // namespace cadre
