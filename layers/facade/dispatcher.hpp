// SPDX-License-Identifier: Apache-2.0
// Behind moe.hpp: what a dispatcher and its batches own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/exchange/dispatch.hpp"
#include "comm/progress/lane.hpp"
#include "layers/facade/moe.hpp"
#include "layers/facade/staging.hpp"
#include "layers/nn/linear.hpp"

namespace cadre::moe {
inline namespace v1 {

// The ranks of a dispatcher.
struct Ranks {
  std::unique_ptr<JobContext> job;  // nullptr: it belongs to the caller
  Communicator group;
  std::function<void()> leave_to_process_end;
};

// Throws ErrorKind::input on options that cannot be. Not collective.
void check_options(const Options& options, int num_ranks);

class DispatcherState {
 public:
  // Collective. `options` are checked; kernels are of the memory that they name.
  DispatcherState(Ranks ranks, const Options& options, std::unique_ptr<Kernels> kernels);

  const Options& options() const { return options_; }
  const ExpertMap& map() const { return map_; }
  const Communicator& group() const { return lane_.expert_group(); }
  const std::string& strategy() const { return strategy_; }
  Exchange& exchange() { return *exchange_; }
  const Kernels& kernels() const { return *kernels_; }
  Context context() { return {*kernels_, arena_, DType::f32}; }
  Arena& arena() { return arena_; }
  BufferPool& pool() { return pool_; }
  Staging& staging() { return staging_; }
  RowFormat dispatch_format() const;
  RowFormat combine_format() const;
  CombineMode combine_mode() const;
  void leave_to_process_end() noexcept { ranks_.leave_to_process_end(); }

  // Runs `task` to completion; `phase`, a string literal, names it in messages.
  void run(const char* phase, Task<void> task);

 private:
  struct JobAndLeave {
    std::unique_ptr<JobContext> job;
    std::function<void()> leave_to_process_end;
  };

  Options options_;
  ExpertMap map_;
  JobAndLeave ranks_;
  Lane lane_;
  std::unique_ptr<Kernels> kernels_;
  Arena arena_;
  BufferPool pool_;
  std::unique_ptr<Exchange> exchange_;
  std::string strategy_;
  Staging staging_;
};

class BatchState {
 public:
  // Sends x; afterwards rows() are there. Collective.
  BatchState(std::shared_ptr<DispatcherState> dispatcher, const ConstRows& x, DispatchPlan plan,
             std::span<const float> weights);
  ~BatchState();
  BatchState(const BatchState&) = delete;
  BatchState& operator=(const BatchState&) = delete;

  Rows rows();
  int64_t num_places() const { return dispatch_->num_places(); }
  const std::vector<int32_t>& expert_offsets() const { return dispatch_->expert_offsets(); }
  const std::vector<float>& weights() const { return weights_; }
  const Plan& plan() const { return plan_; }

  // Collective. Weighted::no is the gradient of the constructor.
  void combine(const ConstRows& results, const Rows& y, Weighted weighted);
  struct WeightGrads {
    ConstRows results;      // [P,H]
    std::span<float> into;  // [T,K]
  };
  void combine_backward(const ConstRows& dy, const Rows& d_results, const WeightGrads* weight_grads);

 private:
  Task<void> to_experts(Elements tokens);
  Task<void> to_tokens(Elements results, Weighted weighted, Tensor into);
  Task<void> gradients_to_experts(Elements dy, Tensor d_results, const WeightGrads* weight_grads);
  void give_tokens_back();

  std::shared_ptr<DispatcherState> dispatcher_;
  Plan plan_;
  std::unique_ptr<Dispatch> dispatch_;
  Buffer rows_;                 // [P,H]
  std::vector<float> weights_;  // [P]
  bool tokens_staged_ = false;
};

// For moe.cpp and tests.
Dispatcher make_dispatcher_of(Ranks ranks, const Options& options, std::unique_ptr<Kernels> kernels);

}  // namespace v1
}  // namespace cadre::moe
