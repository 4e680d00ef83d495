// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/rebalancer.hpp"

#include <algorithm>
#include <numeric>

#include "comm/base/median.hpp"

namespace cadre {
namespace {

// Of steps whose time is kept for medians.
constexpr size_t kMostTimes = 64;

double milliseconds_from(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-6; }

bool is_routed_expert(const Parameter& parameter) { return parameter.placement == Placement::expert; }

}  // namespace

Rebalancer::Rebalancer(Worker& worker, const RunConfig& config, Optimizer& optimizer)
    : worker_(worker),
      optimizer_(optimizer),
      expert_share_(std::min(
          1.0, routed_flops_per_token(config.model) / flops_per_token(config.model, config.data.sequence_length))),
      clock_(config.parallel.rebalance) {
  if (config.parallel.rebalance == 0) return;
  if (const std::string reason = why_not(); !reason.empty()) {
    note_ = "parallel.rebalance moves no expert: " + reason;
    return;
  }
  works_ = true;
  measure();
}

// The same on all ranks.
std::string Rebalancer::why_not() const {
  const Grid& grid = worker_.grid();
  const bool shared_out = worker_.shards().sharded() && grid.data > grid.expert;
  if (grid.expert > 1 && shared_out && worker_.expert_maps().have_replicas()) {
    return "ranks that hold the same experts share out their state, and which experts have copies would change; "
           "parallel.shard_optimizer=false lets them move";
  }
  return why_experts_stay(worker_);
}

void Rebalancer::measure() {
  int64_t state_bytes = 0;
  for (const auto& tensors : {name_moments(optimizer_, is_routed_expert),
                              /*gradients are as large*/ name_values(worker_.store(), is_routed_expert)}) {
    for (const NamedTensor& tensor : tensors) state_bytes += static_cast<int64_t>(tensor.memory.bytes());
  }
  setting_ = measure_moves(worker_, state_bytes);
}

double Rebalancer::median_step_ms() const { return step_ms_.empty() ? 0.0 : median_of(step_ms_); }

// What becomes of what the policy proposes; none where no map is better.
std::optional<Rebalancer::Proposal> Rebalancer::weigh(const std::vector<ExpertMap>& best, int64_t steps_left) const {
  const std::vector<ExpertMap> before = mixture_maps(worker_, layers_);
  const std::vector<std::vector<double>>& loads = loads_.of_layers();
  Proposal proposal;
  proposal.maps = within_arrivals(
      before, best, loads, static_cast<int64_t>(kMostArrivingBytes) / std::max<int64_t>(1, setting_.expert_bytes));
  std::vector<int> of_rank(static_cast<size_t>(worker_.grid().expert), 0);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const std::vector<int> arrived = arrivals(before[layer], proposal.maps[layer]);
    for (size_t rank = 0; rank < of_rank.size(); ++rank) of_rank[rank] += arrived[rank];
  }
  const int64_t copies = std::accumulate(of_rank.begin(), of_rank.end(), int64_t{0});
  if (copies == 0) return std::nullopt;
  const int columns = worker_.grid().data / worker_.grid().expert;
  proposal.copies = copies * columns;
  const auto busiest = static_cast<double>(std::ranges::max(of_rank));
  proposal.estimate = {
      .step_ms = median_step_ms(),
      .expert_share = expert_share_,
      .before = busiest_over_mean(before, loads),
      .after = busiest_over_mean(proposal.maps, loads),
      .copy_ms = busiest * static_cast<double>(setting_.value_bytes) * setting_.copy_seconds_per_byte * 1e3,
      // As many experts leave a rank as arrive.
      .transfer_ms = 2.0 * busiest * static_cast<double>(setting_.expert_bytes) * setting_.seconds_per_byte * 1e3,
      .gain_factor = history_.gain_factor(),
      .cost_factor = history_.cost_factor(),
      .horizon = std::min(clock_.horizon(), steps_left)};
  return proposal;
}

void Rebalancer::after_step(StepRecord& record, int64_t steps_left) {
  if (!works_) return;
  loads_.add(record.global.expert_counts);
  if (look_ && look_->begun) return conclude(record, steps_left);
  if (record.rebalance.bytes > 0) {  // moved in this step, whose time is that of no other
    if (last_move_ && last_move_->step_ms > 0.0) weigh_move(record);
    return;
  }
  step_ms_.push_back(record.step_ms);
  if (step_ms_.size() > kMostTimes) step_ms_.erase(step_ms_.begin());
  if (!clock_.tick() || look_ || plan_ || steps_left < 2) return;
  const int64_t begin_ns = trace_clock_ns();
  const TraceSpan span(worker_.job().tracer(), TraceKind::op, {.step = record.step, .phase = "planning of experts"});
  look_ = {.planned = plan_some_layers(mixture_maps(worker_, layers_), loads_.of_layers(), setting_.groups,
                                       setting_.nodes, worker_.world().rank(), worker_.world().size()),
           .of_all = {}};
  look_->ms = milliseconds_from(begin_ns);
}

void Rebalancer::plan(const ExpertMaps& maps, const StreamOptions& pieces, MoveWatch watch) {
  if (!move_group_) move_group_.emplace(worker_.world().duplicate("expert move"));
  plan_ = {maps, pieces, std::move(watch), {}};
}

void Rebalancer::begin_step() {
  if (look_) {
    look_->of_all = worker_.world().all_reduce(std::move(look_->planned), ReduceOp::sum);
    look_->begun = true;
  }
  if (!plan_) return;
  const int64_t begin_ns = trace_clock_ns();
  tell(MovePhase::travels);
  move_.emplace(worker_, optimizer_, *move_group_, plan_->maps, plan_->pieces);
  plan_->record.stall_ms += milliseconds_from(begin_ns);
}

void Rebalancer::end_passes(StepRecord& record, int64_t steps_left) {
  if (look_ && look_->begun) decide(record, steps_left);
  if (move_) switch_experts(record);
}

// What the step in which experts moved took beyond others, and at least what ranks were seen to wait.
void Rebalancer::weigh_move(StepRecord& record) {
  Rebalance& move = record.rebalance;
  move.took_ms = std::max(record.step_ms - last_move_->step_ms, move.stall_ms);
  if (!last_move_->estimate) return;
  const double more_ms = record.step_ms - last_move_->step_ms;  // also where chance makes it less than nothing
  history_.add_cost(last_move_->estimate->plain_cost_ms(), more_ms, last_move_->step_ms);
}

// Rank 0 decides; the others hear of it while they update.
void Rebalancer::decide(StepRecord& record, int64_t steps_left) {
  const int64_t begin_ns = trace_clock_ns();
  worker_.lane().enter("rebalance");
  look_->best = maps_of_plan(mixture_maps(worker_, layers_), worker_.await(std::move(look_->of_all)));
  std::vector<int64_t> changes(look_->best.size());
  if (worker_.world().rank() == 0) {
    if (last_move_) {
      record.rebalance.got_ms = last_move_->step_ms - median_step_ms();
      if (last_move_->estimate) {
        history_.add_gain(last_move_->estimate->plain_gain_ms(), *record.rebalance.got_ms, last_move_->step_ms);
      }
    }
    look_->proposal = weigh(look_->best, steps_left);
    const std::vector<ExpertMap> before = mixture_maps(worker_, layers_);
    for (size_t layer = 0; look_->proposal && look_->proposal->estimate.pays() && layer < changes.size(); ++layer) {
      changes[layer] = look_->proposal->maps[layer] == before[layer] ? 0 : 1;
    }
  }
  last_move_.reset();
  look_->changes = worker_.world().broadcast(std::move(changes), /*root=*/0);
  look_->ms += milliseconds_from(begin_ns);
}

void Rebalancer::conclude(StepRecord& record, int64_t steps_left) {
  const int64_t begin_ns = trace_clock_ns();
  Look look = std::move(*look_);
  look_.reset();
  const std::vector<int64_t> changes = worker_.await(std::move(look.changes));
  Rebalance found = {.got_ms = record.rebalance.got_ms};
  if (const std::optional<Proposal>& proposal = look.proposal) {
    found.gain_ms = proposal->estimate.gain_ms();
    found.cost_ms = proposal->estimate.cost_ms();
    found.before = proposal->estimate.before;
    found.after = proposal->estimate.after;
  }
  found.stall_ms = look.ms + milliseconds_from(begin_ns);
  if (steps_left > 0 && std::ranges::count(changes, 1) > 0) {
    ExpertMaps maps = worker_.expert_maps();
    for (size_t layer = 0; layer < changes.size(); ++layer) {
      if (changes[layer] == 1) maps.set(layers_[layer], look.best[layer]);
    }
    plan(maps);
    if (look.proposal) found.moved = look.proposal->copies;
    found.got_ms.reset();  // of the move before, which is in the record of this step
    plan_->record = found;
    if (look.proposal) plan_->estimate = look.proposal->estimate;
    return;
  }
  clock_.has_looked();
  if (look.proposal) found.refused = look.proposal->copies;
  record.rebalance = found;
}

void Rebalancer::switch_experts(StepRecord& record) {
  const int64_t begin_ns = trace_clock_ns();
  const TraceSpan span(worker_.job().tracer(), TraceKind::op, {.step = record.step, .phase = "switch of experts"});
  tell(MovePhase::switches);
  plan_->record.bytes = move_->finish();
  tell(MovePhase::over);
  record.rebalance = plan_->record;
  const std::optional<MoveEstimate> estimate = plan_->estimate;
  plan_.reset();
  last_move_ = {median_step_ms(), estimate};
  step_ms_.clear();
  clock_.has_moved();
  record.rebalance.stall_ms += milliseconds_from(begin_ns);
}

}  // namespace cadre
