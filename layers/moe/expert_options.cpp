// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert_options.hpp"

namespace cadre {

FfnOptions ffn_of_expert(const ExpertOptions& options, int id) {
  const int kind = options.kinds == ExpertKinds::typed ? id % 3 : 0;
  if (kind == 0) return options.ffn;
  FfnOptions ffn = options.ffn;
  ffn.activation = Activation::gelu;
  ffn.gated = false;
  ffn.width = kind == 1 ? 2 * ffn.width : ffn.width / 2;
  return ffn;
}

ExpertWeights weights_of_expert(const ExpertOptions& options, int id) {
  const FfnOptions ffn = ffn_of_expert(options, id);
  if (options.kinds == ExpertKinds::projections) return {ffn.hidden * ffn.width, ffn.hidden * ffn.width};
  const int64_t matrices = ffn.gated ? 3 : 2;
  const int64_t one = matrices * ffn.hidden * ffn.width;
  if (options.kinds != ExpertKinds::mixture) return {one, one};
  const int64_t gate = options.inner_experts * ffn.hidden;
  return {gate + options.inner_experts * one, gate + options.inner_top_k * one};
}

}  // namespace cadre
