// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/host_memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <span>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "layers/kernels/product_choice.hpp"

namespace cadre {
namespace {

constexpr size_t kMostLimits = 16;  // the innermost ones: nested deeper than that are no control groups

struct Demand {
  uint64_t bytes = 0;
  std::array<uint64_t, kMostLimits> limits = {};  // by id; 0: none
};

std::vector<Demand> gather_demands(const Communicator& world, size_t wanted_bytes,
                                   const std::vector<MemoryLimit>& limits) {
  Demand mine;
  mine.bytes = wanted_bytes;
  for (size_t i = 0; i < std::min(limits.size(), kMostLimits); ++i) mine.limits[i] = limits[i].id;
  return wait(world.all_gather(mine));
}

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

std::string check_host_memory(const Communicator& world, const Topology& topology, size_t wanted_bytes,
                              const std::vector<MemoryLimit>& limits) {
  const std::vector<Demand> demands = gather_demands(world, wanted_bytes, limits);
  const int host = topology.host_of_rank[static_cast<size_t>(world.rank())];
  double largest_share = -1.0;
  std::string line;
  for (size_t i = 0; i < std::min(limits.size(), kMostLimits); ++i) {
    const MemoryLimit& limit = limits[i];
    uint64_t wanted = 0;
    int num_ranks = 0;
    for (size_t rank = 0; rank < demands.size(); ++rank) {
      const bool shares = rank == static_cast<size_t>(world.rank()) ||
                          (topology.host_of_rank[rank] == host && limit.id != 0 &&
                           std::ranges::find(demands[rank].limits, limit.id) != demands[rank].limits.end());
      if (!shares) continue;
      wanted += demands[rank].bytes;
      ++num_ranks;
    }
    const double allowed_mib = static_cast<double>(limit.bytes) / kMiB;
    const double wanted_mib = static_cast<double>(wanted) / kMiB;
    const std::string ranks = fmt::format("{} rank{}", num_ranks, num_ranks == 1 ? "" : "s");
    CADRE_CHECK(wanted <= limit.bytes,
                fmt::format("{} of {} want{} {:.0f} MiB of memory, {} {:.0f} MiB", ranks,
                            topology.host_names[static_cast<size_t>(host)], num_ranks == 1 ? "s" : "", wanted_mib,
                            limit.what, allowed_mib),
                limit.what == limits.front().what
                    ? "lower train.batch, raise train.micro_batches, or use more hosts"
                    : "lower train.batch, raise train.micro_batches, use more hosts, or ask the batch system or "
                      "container for more memory");
    const double share = wanted_mib / allowed_mib;
    if (share <= largest_share) continue;
    largest_share = share;
    line = fmt::format("{} {:.0f} MiB, of which {} take{} {:.0f} MiB", limit.what, allowed_mib, ranks,
                       num_ranks == 1 ? "s" : "", wanted_mib);
  }
  return line;
}

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
