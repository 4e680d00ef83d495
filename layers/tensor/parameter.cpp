// SPDX-License-Identifier: Apache-2.0
#include "layers/tensor/parameter.hpp"

namespace cadre {

Parameter make_weight(std::initializer_list<std::pair<std::string, int64_t>> parts, int64_t width, double init_std,
                      Placement placement) {
  Parameter weight;
  int64_t num_rows = 0;
  for (const auto& [name, rows] : parts) {
    weight.parts.push_back({name, num_rows, rows});
    num_rows += rows;
  }
  weight.placement = placement;
  weight.init = {Init::Kind::normal, init_std};
  weight.value = Tensor(nullptr, DType::f32, {num_rows, width});
  return weight;
}

Parameter make_vector(std::string name, int64_t size, Init::Kind init, Placement placement) {
  Parameter vector;
  vector.parts.push_back({std::move(name), 0, size});
  vector.placement = placement;
  vector.init = {init, 0.0};
  vector.decay = false;
  vector.value = Tensor(nullptr, DType::f32, {size});
  return vector;
}

}  // namespace cadre
