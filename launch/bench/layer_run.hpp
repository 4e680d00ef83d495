// SPDX-License-Identifier: Apache-2.0
// Steps of one mixture-of-experts layer on fresh random tokens, for `cadre bench layer`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/exchange/exchange.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/workloads.hpp"
#include "layers/moe/moe_layer.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/host_experts.hpp"

namespace cadre {

struct LayerBenchOptions {
  int64_t tokens = 2048;  // a rank
  int64_t hidden = 512;
  int64_t ffn = 1024;
  int64_t experts = 16;
  int64_t top_k = 4;
  std::string activation = "silu";
  std::string precision = "fp32";
  std::string strategy = "auto";
  std::string balance = "none";
  std::string workload = "none";  // W0 ... W7, all, or the router of the layer chooses
  BenchOptions bench;
};

class LayerRun {
 public:
  // Collective over `world`.
  LayerRun(const Communicator& world, const LayerBenchOptions& options);

  // Other tokens, so that nothing is learned or cached.
  void draw();
  // The choices of the workload from now on in place of those of the router, which computes as ever. It may leave a rank fewer
  // tokens.
  void route(Workload workload, int64_t iteration);
  // Forward, backward and optimiser. Collective.
  void step();
  // The products of the last step: per weight with its number of rows, forward, input gradient, weight gradient.
  void floor();

  int64_t rows() const { return saved_.dispatch->num_places(); }  // that came to this rank in the last step
  double gflop();                                                 // of floor()
  std::string_view strategy() const { return exchange_->name(); }
  BenchRig& rig() { return rig_; }

 private:
  Task<void> forward_and_backward();
  // The weights that rows of the last step met on this rank, and how many: those of an expert, or all tokens for the router.
  std::vector<std::pair<const Parameter*, int64_t>> products();

  LayerBenchOptions options_;
  BenchRig rig_;
  std::unique_ptr<Exchange> exchange_;
  MoeLayer layer_;
  std::unique_ptr<HostExperts> host_experts_;  // with --balance host; has memory of the store
  ParameterStore store_;
  std::optional<Optimizer> optimizer_;
  LaneContext ctx_;
  MoeLayer::Saved saved_;
  Tensor x_, dy_;
  int64_t num_tokens_ = options_.tokens;  // of this rank in the last step
  Replay replay_;
  int64_t num_steps_ = 0;
};

// Of several ranks in several steps: the rows of the busiest rank / mean, where steps wait for each other. Collective.
double busiest_over_mean(const Communicator& world, const std::vector<int64_t>& rows);

// Every workload in turn in each iteration, with the time of each beside that of W0 in the same iteration.
void bench_layer_workloads(const Communicator& world, const LayerBenchOptions& options);

}  // namespace cadre
