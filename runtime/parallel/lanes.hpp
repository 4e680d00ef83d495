// SPDX-License-Identifier: Apache-2.0
// The lanes of one rank. A lane is all that one micro-batch under way needs for itself: its communicators, its exchange and
// the memory of its activations. Tasks on different lanes run interleaved on one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/exchange/choose.hpp"
#include "comm/progress/engine.hpp"
#include "layers/model/adapter.hpp"
#include "layers/router/lane_context.hpp"
#include "runtime/parallel/process_groups.hpp"

namespace cadre {

// Makes the back end of a worker, in place of the one that a configuration names.
using KernelMaker = std::function<std::unique_ptr<Kernels>()>;

struct WorkerOptions {
  ModelConfig model;
  ParallelConfig parallel;
  ExchangeConfig exchange;
  ComputeConfig compute;
  PipelineRoutes routes = {};  // where the stages are; the rows of the grid are their ranks
  bool with_grad = true;
  AdapterOptions adapter = {};
  Recompute recompute = {};
  RowBits row_bits = RowBits::independent;  // of products with weights without gradient
  int64_t max_tokens = 0;                   // that one forward pass on this rank is expected to take
  size_t activation_bytes = 0;              // that it is expected to keep for its backward pass; 0: not known
  size_t work_bytes = 0;                    // and to need while one of the two runs, where num_works > 0
  int num_lanes = 1;                        // micro-batches under way at once, the same on all ranks
  int num_lanes_here = 1;                   // of them, those that this rank uses
  int num_works = 0;              // of them, those at work at once; 0: each has memory of its own for its work
  KernelMaker make_kernels = {};  // none: what `compute` says
};

// These throw on a name that is none.
WeightFormat weight_format(const ComputeConfig& config);
Precision precision_of(const ComputeConfig& config);
CombineMode combine_mode(const ExchangeConfig& config);
WireFormats wire_formats(const ExchangeConfig& config);
DType gradient_wire(const ExchangeConfig& config);

class Lanes {
 public:
  // Collective over the world of `groups`. `kernels` outlives this object.
  Lanes(const ProcessGroups& groups, Kernels& kernels, const WorkerOptions& options);

  int size() const { return static_cast<int>(spaces_.size()); }
  Lane& lane(int index = 0) { return space(index).lane; }
  const Lane& lane(int index = 0) const { return spaces_[static_cast<size_t>(index)]->lane; }
  Arena& arena(int index = 0) { return space(index).arena; }
  // Gives the arena of a lane memory for work, where lanes take turns with it, until the object ends.
  class WorkLoan {
   public:
    WorkLoan(Lanes& lanes, int index);
    ~WorkLoan();
    WorkLoan(const WorkLoan&) = delete;
    WorkLoan& operator=(const WorkLoan&) = delete;

   private:
    Lanes& lanes_;
    Arena& arena_;
    Arena* work_;
  };
  // The most that activations took so far, of all lanes.
  size_t peak_activation_bytes() const;
  const Exchange& exchange() const { return *spaces_.front()->exchange; }
  const std::string& exchange_reason() const { return exchange_reason_; }  // why this strategy
  Kernels& kernels() const { return kernels_; }
  // Whether a message may be posted before the kernels that write it have run.
  bool transport_follows() const { return transport_follows_; }
  double deadline_seconds() const { return engine_.deadline_seconds(); }

  // The context of a micro-batch that is trained on, its losses scaled by `token_scale`, and of one that is not.
  LaneContext training_context(double token_scale, DeferredQueue& deferred, int index);
  LaneContext inference_context();

  // Runs tasks, each on its lane, to their end; they take turns at their waits, which `filler` fills.
  void run(std::vector<Engine::Run> runs, DeferredQueue* filler = nullptr) const {
    engine_.run(std::move(runs), filler);
  }
  // Waits for a request of this rank outside of a task.
  void await(Request& request) const { wait(request, engine_.deadline_seconds(), lane().position); }
  template <class T>
  T await(Pending<T> pending) const {
    return wait(std::move(pending), engine_.deadline_seconds(), lane().position);
  }

 private:
  struct Space {
    Lane lane;
    std::unique_ptr<Exchange> exchange;
    Arena arena;
  };

  Space& space(int index) { return *spaces_[static_cast<size_t>(index)]; }
  LaneContext context(Space& own) const;
  void make_exchanges(const ProcessGroups& groups, const WorkerOptions& options);
  void make_exchange_of(Space& space, const WorkerOptions& options);
  ExchangeSetup exchange_setup(const Space& space, const WorkerOptions& options) const;
  void make_arenas(const WorkerOptions& options);

  Kernels& kernels_;
  bool transport_follows_;
  Engine engine_;
  CombineMode combine_;
  Recompute recompute_;
  WireFormats wire_;
  std::shared_ptr<ExchangePools> pools_;
  std::vector<std::unique_ptr<Space>> spaces_;
  std::vector<std::unique_ptr<Arena>> works_;
  std::vector<Arena*> free_works_;
  std::string exchange_reason_;
};

}  // namespace cadre
