// SPDX-License-Identifier: Apache-2.0
// The tensors of a checkpoint under the names they have in its files, and where they lie in this rank's memory.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "layers/tensor/parameter_store.hpp"
#include "runtime/optim/adamw.hpp"

namespace cadre {

// A tensor of a file and the memory that it is written from or read into.
struct NamedTensor {
  std::string name;
  Tensor memory;
};

using ParameterChoice = std::function<bool(const Parameter&)>;
inline bool any_parameter(const Parameter& /*parameter*/) { return true; }

// The chosen parameters; each part of a fused one is a tensor of its own. Nothing is under way in the memory of the store
// then, nor in that of its optimizer: the host may read and write.
std::vector<NamedTensor> name_values(const ParameterStore& store, const ParameterChoice& chosen);

// The values that files hold once more under other names (Parameter::copies).
std::vector<NamedTensor> name_copies(const ParameterStore& store, const ParameterChoice& chosen);

// The two moments of each of these: `<part name>.exp_avg` and `<part name>.exp_avg_sq`.
std::vector<NamedTensor> name_moments(const AdamW& optimizer, const ParameterChoice& chosen);

std::vector<int64_t> shape_of(const Tensor& tensor);

}  // namespace cadre
