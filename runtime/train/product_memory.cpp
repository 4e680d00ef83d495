// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/product_memory.hpp"

#include <algorithm>

#include "layers/kernels/product_choice.hpp"

namespace cadre {
namespace {

// What it was seen to take once it is used, and with bf16, whose products it compiles for each shape.
constexpr size_t kOneDnnBytes = size_t{7} << 20;
constexpr size_t kCompiledBytes = size_t{14} << 20;

bool uses_onednn(const ComputeConfig& compute) {
  if (compute.device != "cpu" || !has_onednn()) return false;
  if (compute.products == "auto") return true;
  const ProductChoice choice = ProductChoice::parse(compute.products, "compute.products");
  return std::ranges::any_of(choice.libraries, [](const ProductChoice::Libraries& classes) {
    return std::ranges::find(classes, GemmLibrary::onednn) != classes.end();
  });
}

// As the products of a device take them. In fp8 codes of the weight and of its transpose, or, where those are not multiplied, values.
size_t rounded_bytes_on_device(const ComputeConfig& compute) {
  if (compute.precision == "fp32") return 0;
  return compute.precision == "bf16" ? size_of(DType::bf16) : sizeof(float);
}

// What products keep beside each element of a weight. On a device its rounded value; elsewhere a transposed copy for forward; or,
// in the format of the products, one for forward and one for the input gradient; or rounded values and their transposed copy.
size_t packed_bytes_an_element(const ComputeConfig& compute) {
  if (compute.device != "cpu") return rounded_bytes_on_device(compute);
  const bool transposes = compute.products == "auto"
                              ? has_onednn()
                              : ProductChoice::parse(compute.products, "compute.products").keeps_copies();
  const size_t transposed = transposes ? sizeof(float) : 0;
  if (compute.precision == "fp32") return transposed;
  if (compute.precision == "bf16" && !multiplies_bf16()) return sizeof(float) + transposed;
  return 2 * size_of(DType::bf16);
}

// Whether rows are multiplied with it.
bool is_product(const Parameter& weight, const ModelConfig& model) {
  return weight.value.num_dims() == 2 && weight.value.dtype() == DType::f32 &&
         (model.tie_word_embeddings || weight.name() != "model.embed_tokens.weight");
}

}  // namespace

size_t onednn_bytes(const ComputeConfig& compute) {
  const bool compiles = compute.device == "cpu" && compute.precision == "bf16" && multiplies_bf16();
  return (uses_onednn(compute) ? kOneDnnBytes : 0) + (compiles ? kCompiledBytes : 0);
}

size_t packed_bytes(const RunConfig& config, const ParameterStore& store) {
  const size_t bytes_an_element = packed_bytes_an_element(config.compute);
  size_t bytes = 0;
  for (const Parameter* parameter : store.parameters()) {
    if (is_product(*parameter, config.model)) bytes += bytes_an_element * static_cast<size_t>(parameter->value.numel());
  }
  return bytes;
}

// The largest weight gradient rounds both x [T,K] and dy [T,N].
size_t operand_bytes(const RunConfig& config, const ParameterStore& store, int64_t tokens) {
  if (config.compute.precision == "fp32") return 0;
  int64_t widest = 0;
  for (const Parameter* parameter : store.parameters()) {
    if (parameter->placement == Placement::expert || !is_product(*parameter, config.model)) continue;
    const int64_t width_out = parameter->value.dim(0);
    const int64_t width_in = parameter->value.dim(1);
    widest = std::max(widest, width_out + width_in);
  }
  const bool on_host = config.compute.device == "cpu";
  return static_cast<size_t>(widest * tokens) * (on_host ? sizeof(float) : rounded_bytes_on_device(config.compute));
}

}  // namespace cadre
