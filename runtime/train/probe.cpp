// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/probe.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/base/median.hpp"
#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "comm/group/reduction_queue.hpp"
#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/train/memory_plan.hpp"

namespace cadre {
namespace {

constexpr size_t kEventsOfPass = size_t{1} << 16;

constexpr int kMeasuredPasses = 5;
constexpr int kContendedPasses = 5;
constexpr int64_t kProbeLayers = 3;
constexpr double kNothing = 1e-9;  // seconds of work that was too short to be seen

double seconds_since(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-9; }

// A few layers of each kind, and shorter sequences.
RunConfig few_layers_of(const RunConfig& config, int num_ranks, int divisor) {
  RunConfig probe = one_micro_batch_of(config, num_ranks);
  probe.data.sequence_length = std::max<int64_t>(1, config.data.sequence_length / divisor);
  probe.model.first_k_dense_replace = std::min<int64_t>(1, config.model.first_k_dense_replace);
  probe.model.num_hidden_layers = std::min(config.model.num_hidden_layers, kProbeLayers);
  return probe;
}

// Rates of this rank out of its phases.
class Rates {
 public:
  Rates(const RunConfig& config, int num_ranks, PhaseSeconds phases)
      : model_(config.model),
        tokens_(static_cast<double>(config.train.batch / num_ranks * config.data.sequence_length)),
        length_(config.data.sequence_length),
        expert_ranks_(static_cast<double>(config.parallel.expert)),
        phases_(std::move(phases)) {
    for (int64_t layer = 0; layer < model_.num_hidden_layers; ++layer) {
      const LayerElements e = layer_elements(model_, layer);
      attention_ += tokens_ * (2.0 * static_cast<double>(e.attention) + attended_flops(model_, length_));
      router_ += flops(e.router);
      shared_ += flops(e.shared_experts);
      dense_ += flops(e.dense);
      experts_ += flops(e.met_experts);
      mixtures_ += e.experts > 0 ? 1.0 : 0.0;
    }
  }

  ExpertRate experts() const {
    const double rows = model_.n_routed_experts == 0 ? 1.0
                                                     : tokens_ * static_cast<double>(model_.num_experts_per_tok) *
                                                           expert_ranks_ / static_cast<double>(model_.n_routed_experts);
    return {rows, rate(experts_, "experts", "experts gradient", "experts weights")};
  }

  // `copies` of a row go to other ranks or stay.
  void fill(Machine& machine, double copies) const {
    machine.attention = rate(attention_, "attention", "attention gradient", "attention weights");
    machine.router = rate(router_, "router", "router gradient", "router weights");
    machine.shared_experts = rate(shared_, "shared experts", "shared experts gradient", "shared experts weights");
    machine.dense = rate(dense_, "dense ffn", "dense ffn gradient", "dense ffn weights");
    machine.head = rate(flops(model_.vocab_size * model_.hidden_size), "head", "head gradient", "head weights");
    const double row_bytes = tokens_ * static_cast<double>(model_.hidden_size) * sizeof(float);
    const double adds = copies + static_cast<double>(model_.num_experts_per_tok);
    machine.embedding = bytes_rate(row_bytes, {"embedding", "embedding weights"});
    machine.dispatch = bytes_rate(mixtures_ * row_bytes * copies, {"dispatch", "expert counts"});
    machine.combine = bytes_rate(mixtures_ * row_bytes * adds, {"combine", "ffn"});
    machine.combine_grad = bytes_rate(mixtures_ * row_bytes * copies, {"combine gradient"});
    machine.dispatch_grad = bytes_rate(mixtures_ * row_bytes * adds, {"dispatch gradient", "ffn gradient"});
  }

 private:
  double flops(int64_t elements) const { return 2.0 * tokens_ * static_cast<double>(elements); }
  double seconds(const std::string& phase) const {
    const auto found = phases_.find(phase);
    return found == phases_.end() ? 0.0 : found->second;
  }
  // Of work that the layers do not have: as attention, so that a file has a rate of every kind.
  ProductRate rate(double work, const char* forward, const char* input_grad, const char* weight_grad) const {
    if (work == 0.0) return rate(attention_, "attention", "attention gradient", "attention weights");
    const auto of = [&](const char* phase) { return work * 1e-9 / std::max(seconds(phase), kNothing); };
    return {of(forward), of(input_grad), of(weight_grad)};
  }
  double bytes_rate(double bytes, const std::vector<std::string>& names) const {
    double sum = 0.0;
    for (const std::string& name : names) sum += seconds(name);
    return std::max(bytes, 1.0) * 1e-9 / std::max(sum, kNothing);
  }

  ModelConfig model_;
  double tokens_;
  int64_t length_;
  double expert_ranks_;
  PhaseSeconds phases_;
  double attention_ = 0.0, router_ = 0.0, shared_ = 0.0, dense_ = 0.0, experts_ = 0.0, mixtures_ = 0.0;
};

// What follows the passes of a step.
void measure_tail(Probe& probe, const RunConfig& config, double steady_pass_s, Machine& machine) {
  Worker& worker = probe.worker();
  const Kernels& kernels = worker.kernels();
  worker.store().complete_grads();
  Optimizer optimizer(worker.store(), config.train);
  double bytes = 0.0;
  for (const Parameter* parameter : worker.store().parameters()) {
    bytes += parameter->grad.defined() ? static_cast<double>(parameter->grad.bytes()) : 0.0;
  }
  std::vector<double> norms, updates, first_passes;
  for (int i = 0; i < 3; ++i) {
    int64_t begin = trace_clock_ns();
    double square = 0.0;
    for (const Parameter* parameter : worker.store().parameters()) {
      if (parameter->grad.defined()) square += kernels.sum_squares(parameter->grad);
    }
    norms.push_back(seconds_since(begin) + 0.0 * square);
    begin = trace_clock_ns();
    optimizer.update(kernels, 0.0, 0.0, i + 1);
    kernels.synchronize();
    updates.push_back(seconds_since(begin));
    first_passes.push_back(sum_of(probe.pass()) - steady_pass_s);
  }
  const auto rate = [&](const std::vector<double>& times) {
    return bytes * 1e-9 / std::max(median_of(times), bytes * 1e-12);
  };
  machine.gradient_norm = rate(norms);
  machine.update = rate(updates);
  machine.repack = rate(first_passes);
}

// Adds as a sum of gradients does.
double measured_addition() {
  std::vector<float> sum(size_t{1} << 20, 1.0F);
  const std::vector<float> term(sum.size(), 2.0F);
  std::vector<double> times;
  for (int i = 0; i < kMeasuredPasses; ++i) {
    const int64_t begin = trace_clock_ns();
    for (size_t j = 0; j < sum.size(); ++j) sum[j] += term[j];
    times.push_back(seconds_since(begin) + 0.0 * static_cast<double>(sum[static_cast<size_t>(i)]));
  }
  return static_cast<double>(sum.size() * sizeof(float)) * 1e-9 / median_of(times);
}

// By how much work takes longer while an array is summed over the ranks. The array is long enough for a few passes.
double measured_contention(Probe& probe, const Communicator& world, const LinkCost& link, double steady_pass_s) {
  // All ranks sum arrays of one length.
  const double slowest_pass_s = wait(world.all_reduce(steady_pass_s, ReduceOp::max));
  const double passes_s = 2.0 * kContendedPasses * slowest_pass_s;
  const double elements = passes_s / std::max(link.beta_s, 1e-12) / sizeof(float);
  const auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(std::clamp(elements, 1e6, 1.6e7)));
  ReductionQueue queue(world);
  Request sum = queue.all_reduce(*values, values);
  Poller& poller = probe.worker().job().poller();
  std::vector<double> slowness;
  for (int i = 0; i < kContendedPasses; ++i) {
    poller.watch(sum, Poller::Kind::other);
    const double seconds = sum_of(probe.pass());
    poller.unwatch(sum);
    if (sum.test()) break;
    slowness.push_back(seconds / steady_pass_s - 1.0);
  }
  probe.worker().await(sum);
  return slowness.empty() ? 0.0 : std::max(0.0, median_of(std::move(slowness)));
}

// Every rate as seconds of a unit: the mean over ranks. All ranks get the same bits.
void average_rates(Machine& machine, const Communicator& world) {
  std::vector<double*> rates;
  const auto add = [&](ProductRate& rate) {
    rates.insert(rates.end(), {&rate.forward, &rate.input_grad, &rate.weight_grad});
  };
  for (ProductRate* rate :
       {&machine.attention, &machine.router, &machine.shared_experts, &machine.dense, &machine.head}) {
    add(*rate);
  }
  for (ExpertRate& size : machine.experts) add(size.rate);
  rates.insert(rates.end(),
               {&machine.embedding, &machine.dispatch, &machine.combine, &machine.combine_grad, &machine.dispatch_grad,
                &machine.reduction, &machine.gradient_norm, &machine.update, &machine.repack});
  std::vector<double> seconds;
  for (const double* rate : rates) seconds.push_back(1.0 / *rate);
  const std::vector<double> sums = wait(world.all_reduce(std::move(seconds), ReduceOp::sum));
  for (size_t i = 0; i < rates.size(); ++i) *rates[i] = world.size() / sums[i];
}

}  // namespace

RunConfig one_micro_batch_of(const RunConfig& config, int num_ranks) {
  RunConfig probe = config;
  const Grid grid =
      Grid::make(num_ranks, static_cast<int>(config.parallel.pipeline), static_cast<int>(config.parallel.expert));
  const auto parts = [](int64_t whole, int64_t count) { return (whole + count - 1) / count; };
  probe.parallel.pipeline = 1;
  probe.parallel.expert = grid.expert;
  probe.parallel.schedule = "1f1b";
  probe.parallel.shard_optimizer = false;
  probe.parallel.shard_gradients = false;
  probe.parallel.placement.clear();
  probe.train.batch = parts(parts(config.train.batch, config.train.micro_batches), grid.data) * num_ranks;
  probe.train.micro_batches = 1;
  probe.model.num_nextn_predict_layers = 0;
  probe.checkpoint.partner_copies = 0;
  probe.exchange.progress = "poll";
  return probe;
}

double sum_of(const PhaseSeconds& phases) {
  double sum = 0.0;
  for (const auto& [phase, seconds] : phases) sum += seconds;
  return sum;
}

Probe::Probe(const Communicator& world, const RunConfig& config)
    : config_(config), worker_(world.duplicate("probe"), training_options(config, world)) {
  worker_.store().initialise(static_cast<uint64_t>(config.seed));
}

PhaseSeconds Probe::pass() {
  TraceRecorder recorder(kEventsOfPass);
  const TraceScope tracing(worker_.job().tracer(), recorder);
  MicroBatch batch = drawn_batch();
  DeferredQueue deferred;
  LaneContext ctx = worker_.lanes().training_context(1.0 / static_cast<double>(batch.num_tokens()), deferred, 0);
  ctx.tokens = batch.facts(static_cast<uint64_t>(config_.seed));
  worker_.forget_grads();
  Request together = worker_.world().barrier();
  worker_.await(together);
  {
    const PollScope polling(worker_.poller());
    Task<void> task = forward_and_backward(ctx, batch.tokens());
    worker_.run(task);
  }
  recorder.end();
  PhaseSeconds seconds;
  for (const TraceEvent& event : recorder.events()) {
    if (event.kind != TraceKind::compute) continue;
    seconds[key_of(event.at)] += static_cast<double>(event.end_ns - event.begin_ns) * 1e-9;
  }
  return seconds;
}

PhaseSeconds Probe::median_of_passes(int num_passes) {
  pass();
  std::map<std::string, std::vector<double>> passes;
  for (int i = 0; i < num_passes; ++i) {
    for (const auto& [phase, seconds] : pass()) passes[phase].push_back(seconds);
  }
  PhaseSeconds phases;
  for (auto& [phase, seconds] : passes) {
    seconds.resize(static_cast<size_t>(num_passes), 0.0);
    phases[phase] = median_of(std::move(seconds));
  }
  return phases;
}

std::string Probe::key_of(const Position& at) const {
  const bool is_dense = at.layer >= 0 && !is_moe_layer(config_.model, at.layer);
  return is_dense && std::string_view(at.phase).starts_with("ffn") ? std::string("dense ") + at.phase : at.phase;
}

MicroBatch Probe::drawn_batch() {
  const int64_t sequences = config_.train.batch / worker_.world().size();
  const Random random(static_cast<uint64_t>(config_.seed), "probe", static_cast<uint64_t>(worker_.world().rank()));
  std::vector<int32_t> ids(static_cast<size_t>(sequences * config_.data.sequence_length));
  for (int32_t& id : ids) {
    id = static_cast<int32_t>(random.below(static_cast<uint64_t>(config_.model.vocab_size), num_drawn_++));
  }
  return {ids, ids, sequences, config_.data.sequence_length, sequences * worker_.world().rank()};
}

Task<void> Probe::forward_and_backward(LaneContext& ctx, TokenBatch batch) {
  const ArenaScope scope(ctx.arena);
  Stage& stage = *worker_.model().stages().front();
  Stage::Saved saved;
  Task<Stage::Output> forward = stage.forward(ctx, batch, Tensor(), saved);
  co_await forward;
  Task<Tensor> backward = stage.backward(ctx, saved, Tensor(), Stage::Weights::at_once);
  co_await backward;
}

Machine measure_machine(const Communicator& world, const RunConfig& config, const std::vector<int>& row_divisors) {
  Machine machine;
  const Topology topology = discover_topology(world);
  if (world.size() > 1) {
    const CostModel links = measure_costs(world, topology, Bursts::measured);
    machine.host = links.host;
    machine.network = links.network;
  }
  for (const int divisor : row_divisors) {
    const RunConfig probe_config = few_layers_of(config, world.size(), divisor);
    check(probe_config, world.size());
    Probe probe(world, probe_config);
    const PhaseSeconds phases = probe.median_of_passes(kMeasuredPasses);
    const Rates rates(probe_config, world.size(), phases);
    machine.experts.push_back(rates.experts());
    if (divisor != row_divisors.back()) continue;
    const ExchangeWorkload workload = {.tokens = 1,
                                       .top_k = static_cast<int>(config.model.num_experts_per_tok),
                                       .dispatch = {},
                                       .combine = {},
                                       .experts = static_cast<int>(config.model.n_routed_experts)};
    const auto group = static_cast<int>(probe_config.parallel.expert);
    const double copies = exchange_times("flat", workload, Topology::uniform(1, group), {}).row_copies;
    rates.fill(machine, copies);
    if (world.size() > 1) {
      LinkCost& slowest = topology.num_hosts() > 1 ? machine.network : machine.host;
      const double mine = measured_contention(probe, world, slowest, sum_of(phases));
      slowest.contention = wait(world.all_reduce(mine, ReduceOp::sum)) / world.size();
    }
    measure_tail(probe, probe_config, sum_of(phases), machine);
  }
  std::ranges::sort(machine.experts, {}, &ExpertRate::rows);
  machine.reduction = measured_addition();
  average_rates(machine, world);
  return machine;
}

}  // namespace cadre
