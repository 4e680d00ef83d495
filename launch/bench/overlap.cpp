// SPDX-License-Identifier: Apache-2.0
// cadre bench overlap: how much of a dispatch hides behind products that take as long, by the number of polls inside
// them. All contenders in turn in the same run, on routing that is drawn anew for each iteration.
#include "runtime/report/overlap.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "comm/job/poll.hpp"
#include "comm/progress/progress_thread.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/exchange_run.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/report/step_sums.hpp"

namespace cadre {
namespace {

struct BenchOverlapArguments {
  ExchangeBenchOptions exchange;
  double ratio = 1.0;  // products : dispatch
};

constexpr double kPolls[] = {0, 20, 200};
constexpr std::string_view kDispatch = "dispatch";
constexpr size_t kTraceCapacity = size_t{1} << 14;

// Products that take about `wanted_us` on this rank: what a rank computes while rows travel.
class Products {
 public:
  Products(int64_t hidden, ThreadPool& threads) : kernels_(make_cpu_kernels(Precision::fp32, {.threads = &threads})) {
    weight_ = make_weight({{"weight", hidden}}, hidden, 0.02);
    store_.add(weight_);
    store_.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false);
    store_.initialise(1);
    x_ = arena_.take("x", DType::f32, {kRows, hidden});
    y_ = arena_.take("y", DType::f32, {kRows, hidden});
    const Random random(11, "bench overlap", 0);
    for (int64_t i = 0; i < x_.numel(); ++i) {
      x_.data<float>()[i] = static_cast<float>(random.uniform(static_cast<uint64_t>(i)) - 0.5);
    }
  }

  void make_last(double wanted_us) {
    run();
    std::vector<double> one;
    for (int i = 0; i < 5; ++i) {
      const int64_t begin = trace_clock_ns();
      kernels_->linear(x_, weight_, y_);
      one.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-3);
    }
    count_ = std::max<int64_t>(1, static_cast<int64_t>(wanted_us / summarise(one).p50 + 0.5));
  }

  void run() const {
    for (int64_t i = 0; i < count_; ++i) kernels_->linear(x_, weight_, y_);
  }

 private:
  static constexpr int64_t kRows = 256;
  std::unique_ptr<Kernels> kernels_;
  Parameter weight_;
  ParameterStore store_;
  Arena arena_;
  Tensor x_, y_;
  int64_t count_ = 1;
};

// One way to make progress while products run.
struct Contender {
  std::string name;
  double polls = 0;
  bool with_thread = false;
  Poller poller;  // what it has learnt of the length of exchanges
  std::vector<double> us, in_flight_percent, polls_done, poll_us;
};

// Of the time in flight, the part during computation. Not what was hidden: a request that a busy rank notices late is in
// flight for longer.
double in_flight_during_compute(const std::vector<TraceEvent>& events) {
  std::vector<Interval> computed, in_flight;
  for (const TraceEvent& event : events) {
    if (event.kind == TraceKind::compute) computed.push_back({event.begin_ns, event.end_ns});
    if (event.kind == TraceKind::flight && event.at.phase == kDispatch)
      in_flight.push_back({event.begin_ns, event.end_ns});
  }
  const IntervalSet flight(std::move(in_flight));
  const auto whole = static_cast<double>(flight.total());
  CADRE_ASSERT(whole > 0);
  return 100.0 * static_cast<double>(intersected(flight, IntervalSet(computed)).total()) / whole;
}

void run_overlapped(const Communicator& world, std::optional<int> spare_cpu, ExchangeRun& run, const Products& products,
                    Contender& contender) {
  std::optional<ProgressThread> thread;
  if (contender.with_thread) thread.emplace(world.transport(), *spare_cpu);
  TraceRecorder recorder(kTraceCapacity);
  Tracer& tracer = world.job().tracer();
  const TraceScope tracing(tracer, recorder);
  Poller& poller = world.job().poller();
  poller = std::exchange(contender.poller, {});
  poller.take_count();
  contender.us.push_back(run.timed_us([&] {
    run.dispatch([&] { products.run(); });
    recorder.end();
  }));
  const PollCount count = poller.take_count();
  contender.poller = poller;
  contender.polls_done.push_back(static_cast<double>(count.polls));
  contender.poll_us.push_back(static_cast<double>(count.nanoseconds) * 1e-3);
  contender.in_flight_percent.push_back(in_flight_during_compute(recorder.events()));
}

std::vector<Contender> contenders(const SpareCpu& spare) {
  std::vector<Contender> all;
  for (const double polls : kPolls) {
    Contender& one = all.emplace_back();
    one.name = fmt::format("{:.0f} polls", polls);
    one.polls = polls;
    one.poller.set_policy({.polls_per_exchange = polls});
  }
  if (spare.cpu) {
    Contender& one = all.emplace_back();
    one.name = "thread";
    one.with_thread = true;
    one.poller.set_policy({.polls_per_exchange = 0});
  }
  return all;
}

double median_of_worst_rank(const Communicator& world, const std::vector<double>& values) {
  return gather_times(world, values).slowest.p50;
}

// The median of the rank where it is least.
double least_median(const Communicator& world, const std::vector<double>& values) {
  return wait(world.all_reduce(summarise(values).p50, ReduceOp::min));
}

// Medians, in us.
struct WithoutOverlap {
  double communication = 0;
  double compute = 0;
  double serial = 0;
};

nlohmann::json row_of(const Communicator& world, const Contender& contender, const WithoutOverlap& alone) {
  const double us = median_of_worst_rank(world, contender.us);
  return {{"progress", contender.name},
          {"overlapped_us", us},
          {"hidden_percent_osu", osu_overlap_percent(us, alone.compute, alone.communication, alone.serial)},
          {"in_flight_during_compute_percent", least_median(world, contender.in_flight_percent)},
          {"polls", summarise(contender.polls_done).p50},
          {"poll_us", summarise(contender.poll_us).p50}};
}

void print_overlap(const nlohmann::json& report) {
  fmt::print(
      "a dispatch behind products, {} ranks, {} tokens a rank, hidden {}, {} experts, top-{}, {}; us of the slowest "
      "rank, median\n",
      report["ranks"].get<int>(), report["tokens"].get<int64_t>(), report["hidden"].get<int64_t>(),
      report["experts"].get<int64_t>(), report["top_k"].get<int64_t>(), report["strategy"].get<std::string>());
  fmt::print("dispatch alone {:.0f}, products alone {:.0f}, one after the other {:.0f}\n",
             report["communication_us"].get<double>(), report["compute_us"].get<double>(),
             report["serial_us"].get<double>());
  fmt::print("{:<10} {:>10} {:>12} {:>24} {:>7} {:>9}\n", "", "overlapped", "hidden, OSU", "in flight during compute",
             "polls", "polls, us");
  for (const nlohmann::json& row : report["rows"]) {
    fmt::print("{:<10} {:>10.0f} {:>10.1f} % {:>22.1f} % {:>7.0f} {:>9.1f}\n", row["progress"].get<std::string>(),
               row["overlapped_us"].get<double>(), row["hidden_percent_osu"].get<double>(),
               row["in_flight_during_compute_percent"].get<double>(), row["polls"].get<double>(),
               row["poll_us"].get<double>());
  }
  fmt::print(
      "hidden, OSU: 100 % * (1 - (overlapped - products alone) / dispatch alone); 0 where that took at least as long "
      "as "
      "one after the other\n");
  const auto& why_not = report["no_thread_because"];
  if (!why_not.is_null()) fmt::print("thread: not measured, {}\n", why_not.get<std::string>());
}

void bench_overlap(const Communicator& world, const BenchOverlapArguments& options) {
  const ExchangeBenchOptions& exchange = options.exchange;
  ExchangeRun run(world, discover_topology(world), exchange, exchange.strategy);
  Products products(exchange.hidden, world.job().threads());
  const SpareCpu spare = find_spare_cpu(world, /*threads=*/1);
  std::vector<Contender> all = contenders(spare);
  const auto dispatch = [&] { run.dispatch(); };

  std::vector<double> pure, compute, serial;
  int64_t wrong = 0;
  for (int64_t i = -exchange.warmup; i < exchange.iterations; ++i) {
    run.prepare(Workload::balanced, std::max<int64_t>(i, 0));
    pure.push_back(run.timed_us(dispatch));
    if (i < 0) products.make_last(options.ratio * median_of_worst_rank(world, pure));
    compute.push_back(run.timed_us([&] { products.run(); }));
    serial.push_back(run.timed_us([&] {
      dispatch();
      products.run();
    }));
    for (Contender& contender : all) {
      run.prepare(Workload::balanced, std::max<int64_t>(i, 0));
      run_overlapped(world, spare.cpu, run, products, contender);
      wrong += run.wrong_placed();
    }
    if (i != -1) continue;
    for (auto* warm : {&pure, &compute, &serial}) warm->clear();
    for (Contender& contender : all) {
      for (auto* warm : {&contender.us, &contender.in_flight_percent, &contender.polls_done, &contender.poll_us}) {
        warm->clear();
      }
    }
  }
  const WithoutOverlap alone = {median_of_worst_rank(world, pure), median_of_worst_rank(world, compute),
                                median_of_worst_rank(world, serial)};
  nlohmann::json report = {{"bench", "overlap"},
                           {"ranks", world.size()},
                           {"tokens", exchange.tokens},
                           {"hidden", exchange.hidden},
                           {"experts", exchange.experts},
                           {"top_k", exchange.top_k},
                           {"strategy", exchange.strategy},
                           {"communication_us", alone.communication},
                           {"compute_us", alone.compute},
                           {"serial_us", alone.serial},
                           {"rows", nlohmann::json::array()},
                           {"no_thread_because", nullptr}};
  for (const Contender& contender : all) report["rows"].push_back(row_of(world, contender, alone));
  if (!spare.cpu) report["no_thread_because"] = spare.why_not;
  if (world.rank() == 0) {
    print_overlap(report);
    if (!exchange.json.empty()) write_json_report(exchange.json, report);
  }
  CADRE_CHECK(wrong == 0, fmt::format("{} rows were wrong", wrong));
}

}  // namespace

Command bench_overlap_command() {
  const auto options = std::make_shared<BenchOverlapArguments>();
  ExchangeBenchOptions& exchange = options->exchange;
  exchange.tokens = 512;
  exchange.hidden = 1024;
  exchange.top_k = 4;
  exchange.strategy = "flat";
  return {.name = "overlap",
          .summary = "measures how much of a dispatch products hide, by number of polls",
          .options = {{"strategy", &exchange.strategy, one_of(strategy_names()), "strategy of the exchange"},
                      {"tokens", &exchange.tokens, at_least(1), "tokens of each rank"},
                      {"hidden", &exchange.hidden, at_least(2), "width of a row and of the products"},
                      {"experts", &exchange.experts, at_least(1), "experts over all ranks"},
                      {"top-k", &exchange.top_k, at_least(1), "experts of a token"},
                      {"ratio", &options->ratio, between(0.01, 100), "time of the products / time of the dispatch"},
                      {"iterations", &exchange.iterations, at_least(1), "measured iterations"},
                      {"warmup", &exchange.warmup, at_least(1), "iterations before the measurement"},
                      ranks_option(exchange.ranks),
                      {"json", &exchange.json, any(), "also write the result to this file, as JSON"}},
          .run = [options](const Job& job) {
            check_top_k(options->exchange.top_k, options->exchange.experts);
            job.on_ranks(options->exchange.ranks, [&](Communicator world) { bench_overlap(world, *options); });
          }};
}

}  // namespace cadre
