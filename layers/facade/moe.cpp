// SPDX-License-Identifier: Apache-2.0
#include "layers/facade/moe.hpp"

#include <utility>

#include "comm/base/check.hpp"
#include "comm/device/staged.hpp"
#include "comm/exchange/plan.hpp"
#include "comm/transport/mpi.hpp"
#include "comm/transport/mpi_group.hpp"
#include "layers/facade/dispatcher.hpp"
#include "layers/kernels/gpu/cuda.hpp"

namespace cadre::moe {

namespace {

std::unique_ptr<Kernels> kernels_of(const Options& options, JobContext& job) {
  if (options.memory == Memory::device) return make_cuda_kernels(options.device, Precision::fp32);
  job.threads().resize(options.threads);
  return make_cpu_kernels(Precision::fp32, {.threads = &job.threads()});
}

// Rows of a device where MPI cannot be handed them go through memory of the host.
std::unique_ptr<Transport> over_host(std::unique_ptr<Transport> transport, const Options& options) {
  if (options.memory == Memory::host || mpi_reaches_devices()) return transport;
  return make_staged_transport(std::move(transport), make_cuda_copies(options.device));
}

Batch batch_of(Dispatcher& dispatcher, const ConstRows& x, DispatchPlan plan, std::span<const float> weights) {
  return Batch(std::make_unique<BatchState>(dispatcher.share(), x, std::move(plan), weights));
}

}  // namespace

inline namespace v1 {
int version() noexcept { return CADRE_MOE_VERSION; }

Dispatcher make_dispatcher(MPI_Comm comm, const Options& options) {
  auto job =
      std::make_unique<JobContext>(options.deadline_seconds > 0.0 ? options.deadline_seconds : kDefaultDeadlineSeconds);
  MpiGroup mpi = make_mpi_group(*job, comm);
  check_options(options, mpi.transport->size());
  std::unique_ptr<Kernels> kernels = kernels_of(options, *job);
  Communicator group(over_host(std::move(mpi.transport), options), "dispatcher");
  return make_dispatcher_of({std::move(job), std::move(group), std::move(mpi.leave_to_process_end)}, options,
                            std::move(kernels));
}

int Dispatcher::rank() const { return state_->group().rank(); }
int Dispatcher::num_ranks() const { return state_->group().size(); }
std::span<const int> Dispatcher::experts() const { return state_->map().experts_of(rank()); }
const Options& Dispatcher::options() const { return state_->options(); }
std::string Dispatcher::strategy() const { return state_->strategy(); }
void Dispatcher::leave_to_process_end() noexcept { state_->leave_to_process_end(); }

Batch::Batch(std::unique_ptr<BatchState> state) : state_(std::move(state)) {}
Batch::Batch(Batch&&) noexcept = default;
Batch& Batch::operator=(Batch&&) noexcept = default;
Batch::~Batch() = default;

Rows Batch::rows() const { return state_->rows(); }
std::span<const int32_t> Batch::expert_offsets() const { return state_->expert_offsets(); }
std::span<const float> Batch::weights() const { return state_->weights(); }
const Plan& Batch::plan() const { return state_->plan(); }

Batch dispatch(Dispatcher& dispatcher, const ConstRows& x, std::span<const int32_t> ids,
               std::span<const float> weights) {
  const DispatcherState& state = dispatcher.state();
  const int top_k = state.options().top_k;
  CADRE_CHECK(static_cast<int64_t>(ids.size()) == x.count * top_k,
              fmt::format("ids has {} values, must have tokens x top_k = {} x {}", ids.size(), x.count, top_k));
  return batch_of(dispatcher, x, make_dispatch_plan(ids, top_k, state.map(), dispatcher.rank()), weights);
}

Batch dispatch(Dispatcher& dispatcher, const ConstRows& x, const Plan& plan, std::span<const float> weights) {
  CADRE_CHECK(plan.num_ranks() == dispatcher.num_ranks() && plan.top_k() == dispatcher.options().top_k,
              fmt::format("the plan is for {} ranks and top_k = {}, the dispatcher has {} and {}", plan.num_ranks(),
                          plan.top_k(), dispatcher.num_ranks(), dispatcher.options().top_k));
  return batch_of(dispatcher, x, plan.value(), weights);
}

void combine(Batch& batch, const ConstRows& results, const Rows& y) {
  batch.state().combine(results, y, Weighted::yes);
}

void combine_backward(Batch& batch, const ConstRows& dy, const Rows& d_results) {
  batch.state().combine_backward(dy, d_results, nullptr);
}

void combine_backward(Batch& batch, const ConstRows& dy, const ConstRows& results, const Rows& d_results,
                      std::span<float> d_weights) {
  const BatchState::WeightGrads weight_grads = {results, d_weights};
  batch.state().combine_backward(dy, d_results, &weight_grads);
}

void dispatch_backward(Batch& batch, const ConstRows& d_rows, const Rows& dx) {
  batch.state().combine(d_rows, dx, Weighted::no);
}

}  // namespace v1

inline namespace v1 {

int Plan::num_ranks() const { return plan_->num_ranks(); }
int Plan::top_k() const { return plan_->top_k; }
int64_t Plan::num_tokens() const { return plan_->num_tokens; }
int64_t Plan::num_rows() const { return plan_->num_rows(); }
int64_t Plan::num_slots() const { return plan_->num_slots(); }
int64_t Plan::num_dropped() const { return plan_->num_dropped; }
std::span<const int64_t> Plan::row_counts() const { return plan_->row_counts; }
std::span<const int64_t> Plan::slot_counts() const { return plan_->slot_counts; }
std::span<const int32_t> Plan::row_token() const { return plan_->row_token; }
std::span<const int32_t> Plan::row_slots() const { return plan_->row_slots; }
std::span<const int32_t> Plan::slots() const { return plan_->slots; }
std::span<const int32_t> Plan::slot_expert() const { return plan_->slot_expert; }
std::string Plan::describe() const { return plan_->describe(); }
bool Plan::operator==(const Plan& other) const { return *plan_ == *other.plan_; }

Plan make_plan(std::span<const int32_t> ids, int top_k, int num_experts, int num_ranks, int rank,
               const std::vector<std::vector<int>>& experts_of) {
  CADRE_CHECK(num_experts >= 1, fmt::format("num_experts = {}, at least 1", num_experts));
  CADRE_CHECK(top_k >= 1 && top_k <= num_experts,
              fmt::format("top_k = {} of {} experts, 1 to num_experts", top_k, num_experts));
  CADRE_CHECK(num_ranks >= 1 && rank >= 0 && rank < num_ranks, fmt::format("rank {} of {}", rank, num_ranks));
  CADRE_CHECK(ids.size() % static_cast<size_t>(top_k) == 0,
              fmt::format("ids has {} values, not a multiple of top_k = {}", ids.size(), top_k));
  CADRE_CHECK(experts_of.empty() || static_cast<int>(experts_of.size()) == num_ranks,
              fmt::format("experts_of has {} lists for {} ranks", experts_of.size(), num_ranks));
  const ExpertMap map =
      experts_of.empty() ? ExpertMap::contiguous(num_experts, num_ranks) : ExpertMap::of(num_experts, experts_of);
  return Plan(std::make_shared<const DispatchPlan>(make_dispatch_plan(ids, top_k, map, rank)));
}

}  // namespace v1

}  // namespace cadre::moe
