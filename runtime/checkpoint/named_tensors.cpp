// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/named_tensors.hpp"

#include <string_view>

namespace cadre {
namespace {

// `whole` has the shape of the parameter.
void append_parts(const Parameter& parameter, const Tensor& whole, std::string_view suffix,
                  std::vector<NamedTensor>& tensors) {
  for (const ParameterPart& part : parameter.parts) {
    tensors.push_back({fmt::format("{}{}", part.name, suffix), whole.rows(part.first_row, part.num_rows)});
  }
}

}  // namespace

std::vector<NamedTensor> name_values(const ParameterStore& store, const ParameterChoice& chosen) {
  store.memory().synchronize();
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (chosen(*parameter)) append_parts(*parameter, parameter->value, "", tensors);
  }
  return tensors;
}

std::vector<NamedTensor> name_copies(const ParameterStore& store, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const Parameter* parameter : store.parameters()) {
    if (!chosen(*parameter)) continue;
    for (const std::string& name : parameter->copies) tensors.push_back({name, parameter->value});
  }
  return tensors;
}

std::vector<NamedTensor> name_moments(const AdamW& optimizer, const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors;
  for (const AdamW::Moments& moments : optimizer.moments()) {
    if (!chosen(*moments.parameter)) continue;
    append_parts(*moments.parameter, moments.first, ".exp_avg", tensors);
    append_parts(*moments.parameter, moments.second, ".exp_avg_sq", tensors);
  }
  return tensors;
}

std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int axis = 0; axis < tensor.num_dims(); ++axis) shape.push_back(tensor.dim(axis));
  return shape;
}

}  // namespace cadre
