// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert_kinds.hpp"

namespace cadre {

FfnOptions options_of_expert(const FfnOptions& usual, ExpertKinds kinds, int id) {
  const int kind = kinds == ExpertKinds::typed ? id % 3 : 0;
  if (kind == 0) return usual;
  FfnOptions options = usual;
  options.activation = Activation::gelu;
  options.width = kind == 1 ? 2 * usual.width : usual.width / 2;
  return options;
}

int64_t weights_of_expert(const FfnOptions& usual, ExpertKinds kinds, int id) {
  const FfnOptions options = options_of_expert(usual, kinds, id);
  const int64_t matrices = options.activation == Activation::silu ? 3 : 2;
  return matrices * options.hidden * options.width;
}

}  // namespace cadre
