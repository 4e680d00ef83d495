// SPDX-License-Identifier: Apache-2.0
// `cadre bench exchange`: what it takes to bring rows to experts and results back. Timed is all that an exchange does to
// a mixture layer whose experts do nothing: rows into expert order, and weighted sums home to each token. Plans and
// counts are made before, for all contenders alike.
#include "launch/bench_exchange.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "comm/exchange/choose.hpp"
#include "launch/alltoallv.hpp"
#include "launch/statistics.hpp"
#include "launch/workloads.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"

namespace cadre {
namespace {

constexpr double kMicroseconds = 1e-3;  // of a nanosecond

Tensor index_tensor(std::span<const int32_t> index) {
  return {const_cast<int32_t*>(index.data()), DType::i32, {static_cast<int64_t>(index.size())}};
}

Rows rows_of(const Elements& elements, int64_t hidden) {
  return {elements.base, static_cast<int64_t>(elements.stride), DType::f32, hidden};
}

std::vector<int32_t> through(const Elements& elements, const std::vector<int32_t>& places) {
  if (elements.index.empty()) return places;
  std::vector<int32_t> index;
  for (const int32_t place : places) index.push_back(elements.index[place]);
  return index;
}

// A row says whose it is in its first two channels; the others are random.
float channel(int rank, int64_t token, int64_t h) {
  if (h == 0) return static_cast<float>(rank);
  if (h == 1) return static_cast<float>(token);
  const auto mixed = static_cast<uint32_t>((token * 7919 + h * 104729 + rank * 15485863) % 65521);
  return static_cast<float>(mixed) / 65521.0F - 0.5F;
}

// One rank of one strategy under one workload.
class ExchangeRun {
 public:
  ExchangeRun(const Communicator& world, const Topology& topology, const BenchExchangeOptions& options,
              const std::string& strategy)
      : world_(world),
        options_(options),
        map_(ExpertMap::contiguous(options.experts, world.size())),
        kernels_(make_cpu_kernels(Precision::fp32)),
        exchange_(make_exchange(strategy, setup(world, topology, options))) {
    if (!exchange_->memory().empty()) arena_.lend(exchange_->memory());
    const Wire wire = options.wire == "fp32" ? Wire::same : options.wire == "bf16" ? Wire::bf16 : Wire::fp8;
    dispatch_ = {DType::f32, options.hidden, wire};
    combine_ = {DType::f32, options.hidden, wire == Wire::same ? Wire::same : Wire::bf16};
    by_slot_ = options.combine == "slot_order" || exchange_->prefers_slots();
  }

  // Routing, plan, counts and expert order of one iteration; x is written anew, outputs are poisoned. Collective.
  void prepare(Workload workload, int64_t iteration) {
    arena_.release({});
    ids_ = draw_routing(workload, {options_.tokens, options_.top_k, world_.rank(), iteration}, map_);
    route_ = {};
    route_.plan = make_dispatch_plan(ids_, options_.top_k, map_);
    Request announced = exchange_->announce(route_);
    wait(announced);
    exchange_->learn_counts(route_);
    learn_batch();

    const DispatchPlan& plan = route_.plan;
    x_ = arena_.take("x", DType::f32, {plan.num_tokens, options_.hidden});
    for (int64_t token = 0; token < plan.num_tokens; ++token) {
      for (int64_t h = 0; h < options_.hidden; ++h) {
        x_.data<float>()[token * options_.hidden + h] = channel(world_.rank(), token, h);
      }
    }
    placed_ = arena_.take("placed", DType::f32, {route_.receive.num_slots(), options_.hidden});
    y_ = arena_.take("y", DType::f32, {plan.num_tokens, options_.hidden});
    weights_ = arena_.take("weights", DType::f32, {plan.num_slots()});
    std::fill_n(weights_.data<float>(), weights_.numel(), 1.0F / static_cast<float>(options_.top_k));
    slot_weights_.assign(static_cast<size_t>(route_.receive.num_slots()), 1.0F / static_cast<float>(options_.top_k));
    for (const Tensor& output : {placed_, y_}) std::memset(output.raw(), 0xff, output.bytes());
  }

  void run() {
    auto there = exchange_->transfer(route_, Direction::to_experts, Unit::row, dispatch_);
    there->pack({x_.raw(), x_.row_bytes(), route_.plan.row_token});
    there->start();
    wait(there->finish());
    const Elements received = there->unpack();
    kernels_->gather_rows(rows_of(received, options_.hidden), index_tensor(through(received, batch_.place_row)),
                          Tensor(), placed_);
    there.reset();

    ArenaScope scope(arena_);
    const auto back =
        exchange_->transfer(route_, Direction::to_tokens, by_slot_ ? Unit::slot : Unit::row, combine_);
    if (by_slot_) {
      back->pack({placed_.raw(), placed_.row_bytes(), batch_.row_place});
    } else {
      const Tensor sums = arena_.take("sums", DType::f32, {route_.receive.num_rows(), options_.hidden});
      const Tensor weights(slot_weights_.data(), DType::f32, {static_cast<int64_t>(slot_weights_.size())});
      kernels_->sum_rows(placed_, index_tensor(batch_.row_places), index_tensor(batch_.row_place), weights, sums);
      back->pack({sums.raw(), sums.row_bytes()});
    }
    back->start();
    wait(back->finish());
    const Elements home = back->unpack();
    kernels_->sum_rows(rows_of(home, options_.hidden), index_tensor(home.offsets), index_tensor(home.index),
                       by_slot_ ? weights_ : Tensor(), y_);
    wait(back->release());
  }

  // Rows that are not what they must be, here and of the tokens of this rank. Run on the yardstick's y as well.
  int64_t wrong(bool check_placed) const {
    int64_t count = 0;
    const double step = dispatch_.wire == Wire::same ? 1e-6 : dispatch_.wire == Wire::bf16 ? 0.0079 : 0.075;
    for (int64_t token = 0; token < y_.dim(0); ++token) {
      bool good = true;
      const float* row = y_.data<float>() + token * options_.hidden;
      for (int64_t h = 2; h < options_.hidden; ++h) {
        good &= std::fabs(row[h] - channel(world_.rank(), token, h)) <= step;
      }
      count += good ? 0 : 1;
    }
    return check_placed && dispatch_.wire == Wire::same ? count + wrong_placed() : count;
  }

  double yardstick_us() {
    AlltoallvExchange baseline(world_, *kernels_, ids_, options_.top_k, map_, options_.hidden);
    baseline_bytes_ = baseline.crossing_bytes();
    const Tensor weights(weights_.raw(), DType::f32, {weights_.numel()});
    baseline.run(x_, weights, y_);  // touches the pages
    std::memset(y_.raw(), 0xff, y_.bytes());
    return timed_us([&] { baseline.run(x_, weights, y_); });
  }

  // As many bytes as rows come here and go back.
  double memcpy_us() {
    const size_t bytes = static_cast<size_t>(route_.receive.num_rows()) * dispatch_.row_bytes();
    if (from_.bytes() < bytes) {
      from_ = Buffer(bytes);
      into_ = Buffer(bytes);
      std::memset(from_.data(), 1, bytes);
      std::memset(into_.data(), 2, bytes);
    }
    return timed_us([&] {
      std::memcpy(into_.data(), from_.data(), bytes);
      std::memcpy(from_.data(), into_.data(), bytes);
    });
  }

  double exchange_us() {
    return timed_us([this] { run(); });
  }

  Traffic traffic() const { return exchange_->traffic(); }
  int64_t baseline_bytes() const { return baseline_bytes_; }
  const Route& route() const { return route_; }

 private:
  static ExchangeSetup setup(const Communicator& world, const Topology& topology, const BenchExchangeOptions& options) {
    const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
    const auto slots = static_cast<size_t>(options.tokens * options.top_k);
    return {.group = world,
            .topology = topology,
            .max_tokens = options.tokens,
            .top_k = options.top_k,
            .max_row_bytes = row_bytes,
            .memory_bytes = row_bytes * slots * static_cast<size_t>(world.size() + 3)};
  }

  template <class Work>
  double timed_us(Work&& work) const {
    Request together = world_.barrier();
    wait(together);
    const int64_t begin = trace_clock_ns();
    work();
    return static_cast<double>(trace_clock_ns() - begin) * kMicroseconds;
  }

  // Row and expert of each slot, as the layer would learn them.
  void learn_batch() {
    struct Record {
      int32_t row;
      int32_t expert;
    };
    const DispatchPlan& plan = route_.plan;
    std::vector<Record> records;
    for (int rank = 0; rank < plan.num_ranks(); ++rank) {
      for (int64_t row = plan.row_offsets[rank]; row < plan.row_offsets[rank + 1]; ++row) {
        for (int32_t at = plan.row_slots[row]; at < plan.row_slots[row + 1]; ++at) {
          records.push_back({static_cast<int32_t>(row - plan.row_offsets[rank]), plan.slot_expert[at]});
        }
      }
    }
    const auto slots =
        exchange_->transfer(route_, Direction::to_experts, Unit::slot, RowFormat::of_bytes(sizeof(Record)));
    slots->pack({reinterpret_cast<const std::byte*>(records.data()), sizeof(Record)});
    slots->start();
    wait(slots->finish());
    const Elements received = slots->unpack();
    std::vector<int32_t> row_slot_counts(static_cast<size_t>(route_.receive.num_rows()), 0);
    std::vector<int32_t> slot_expert;
    for (int source = 0; source < world_.size(); ++source) {
      for (int64_t i = route_.receive.slot_offsets[source]; i < route_.receive.slot_offsets[source + 1]; ++i) {
        const auto* record = reinterpret_cast<const Record*>(received.at(i));
        ++row_slot_counts[static_cast<size_t>(route_.receive.row_offsets[source] + record->row)];
        slot_expert.push_back(record->expert);
      }
    }
    const auto num_local = static_cast<int>(map_.experts_of(world_.rank()).size());
    batch_ = make_expert_batch(row_slot_counts, slot_expert, num_local);
  }

  // Token identity in expert order: every place holds a whole row of one (rank, token), in order of rank and token.
  int64_t wrong_placed() const {
    int64_t count = 0;
    for (size_t expert = 0; expert + 1 < batch_.expert_offsets.size(); ++expert) {
      int64_t last = -1;
      for (int32_t place = batch_.expert_offsets[expert]; place < batch_.expert_offsets[expert + 1]; ++place) {
        const float* row = placed_.data<float>() + place * options_.hidden;
        const auto rank = static_cast<int64_t>(row[0]);
        const auto token = static_cast<int64_t>(row[1]);
        bool good = rank >= 0 && rank < world_.size() && rank * options_.tokens + token > last;
        for (int64_t h = 2; good && h < options_.hidden; ++h) {
          good = row[h] == channel(static_cast<int>(rank), token, h);
        }
        last = rank * options_.tokens + token;
        count += good ? 0 : 1;
      }
    }
    return count;
  }

  const Communicator& world_;
  BenchExchangeOptions options_;
  ExpertMap map_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Exchange> exchange_;
  Arena arena_;
  RowFormat dispatch_, combine_;
  bool by_slot_ = false;
  std::vector<int32_t> ids_;
  Route route_;
  ExpertBatch batch_;
  Tensor x_, placed_, y_, weights_;
  std::vector<float> slot_weights_;
  int64_t baseline_bytes_ = 0;
  Buffer from_, into_;
};

struct Sums {
  int64_t logical = 0, crossing = 0, between_hosts = 0, alltoallv = 0, wrong = 0;
};

// Of all ranks.
void add_over_ranks(const Communicator& world, Sums& sums) {
  std::vector<int64_t> values = {sums.logical, sums.crossing, sums.between_hosts, sums.alltoallv, sums.wrong};
  Request added = world.all_reduce(std::span(values), ReduceOp::sum);
  wait(added);
  sums = {values[0], values[1], values[2], values[3], values[4]};
}

// The larger of what the busiest rank sends and receives (the alltoallv convention of nccl-tests), both ways.
double busiest_bytes(const Communicator& world, const Route& route, size_t row_bytes) {
  std::vector<int64_t> most = {std::max(route.plan.num_rows(), route.receive.num_rows())};
  Request reduced = world.all_reduce(std::span(most), ReduceOp::max);
  wait(reduced);
  return 2.0 * static_cast<double>(most[0]) * static_cast<double>(row_bytes);
}

nlohmann::json measure(const Communicator& world, const Topology& topology, const BenchExchangeOptions& options,
                       const std::string& strategy, Workload workload) {
  ExchangeRun run(world, topology, options, strategy);
  std::vector<double> exchange, yardstick, copy;
  Sums sums;
  double busiest = 0.0;
  for (int64_t i = -options.warmup; i < options.iterations; ++i) {
    run.prepare(workload, std::max<int64_t>(i, 0));
    const Traffic before = run.traffic();
    const double exchange_us = run.exchange_us();
    const Traffic traffic = run.traffic() - before;
    sums.wrong += run.wrong(true);
    const double yardstick_us = run.yardstick_us();
    sums.wrong += options.wire == "fp32" ? run.wrong(false) : 0;
    const double copy_us = run.memcpy_us();
    if (i < 0) continue;
    exchange.push_back(exchange_us);
    yardstick.push_back(yardstick_us);
    copy.push_back(copy_us);
    const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
    sums.logical += 2 * run.route().plan.num_rows() * static_cast<int64_t>(row_bytes);
    sums.crossing += traffic.between_ranks;
    sums.between_hosts += traffic.between_hosts;
    sums.alltoallv += run.baseline_bytes();
    busiest += busiest_bytes(world, run.route(), row_bytes);
  }
  add_over_ranks(world, sums);
  const RankTimes times = gather_times(world, exchange);
  const double yardstick_us = gather_times(world, yardstick).slowest.p50;
  const double copy_us = gather_times(world, copy).slowest.p50;
  const auto per_iteration = [&](int64_t sum) { return sum / options.iterations; };
  const double algbw = busiest / static_cast<double>(options.iterations) / times.slowest.p50 * 1e-3;
  const double ranks = world.size();
  return {{"strategy", strategy},
          {"wire", options.wire},
          {"workload", name_of(workload)},
          {"ranks", world.size()},
          {"hosts", topology.num_hosts()},
          {"tokens", options.tokens},
          {"hidden", options.hidden},
          {"experts", options.experts},
          {"top_k", options.top_k},
          {"p50_us", times.slowest.p50},
          {"p95_us", times.slowest.p95},
          {"worst_rank", times.worst_rank},
          {"worst_rank_us", times.worst_rank_p50},
          {"alltoallv_p50_us", yardstick_us},
          {"memcpy_p50_us", copy_us},
          {"logical_bytes", per_iteration(sums.logical)},
          {"crossing_bytes", per_iteration(sums.crossing)},
          {"between_hosts_bytes", per_iteration(sums.between_hosts)},
          {"alltoallv_bytes", per_iteration(sums.alltoallv)},
          {"algbw_gb_s", algbw},
          {"busbw_gb_s", algbw * (ranks - 1.0) / ranks},
          {"wrong", sums.wrong},
          {"speedup_vs_alltoallv", yardstick_us / times.slowest.p50},
          {"ratio_to_memcpy", times.slowest.p50 / copy_us}};
}

void print_row(const nlohmann::json& row) {
  fmt::print("{:<20} {:<13} {:<5} {:>9.0f} {:>9.0f} {:>9.0f} {:>4} {:>9.1f} {:>9.1f} {:>6.2f} {:>6.2f} {:>6} {:>7.2f} {:>7.2f}\n",
             row["workload"].get<std::string>(), row["strategy"].get<std::string>(), row["wire"].get<std::string>(),
             row["p50_us"].get<double>(), row["p95_us"].get<double>(), row["worst_rank_us"].get<double>(),
             row["worst_rank"].get<int>(), row["logical_bytes"].get<double>() / 1048576.0,
             row["crossing_bytes"].get<double>() / 1048576.0, row["algbw_gb_s"].get<double>(),
             row["busbw_gb_s"].get<double>(), row["wrong"].get<int64_t>(), row["speedup_vs_alltoallv"].get<double>(),
             row["ratio_to_memcpy"].get<double>());
}

std::vector<Workload> workloads_named(const std::string& name) {
  std::vector<Workload> workloads;
  for (int i = 0; i < kNumWorkloads; ++i) {
    const auto workload = static_cast<Workload>(i);
    if (name == "all" || name_of(workload).substr(0, 2) == name) workloads.push_back(workload);
  }
  return workloads;
}

}  // namespace

void bench_exchange(const Communicator& world, const BenchExchangeOptions& options) {
  CADRE_CHECK(options.hosts == 0 || world.size() % options.hosts == 0,
              fmt::format("--hosts {} with {} ranks", options.hosts, world.size()), "it must divide the ranks");
  const Topology topology =
      options.hosts == 0 ? discover_topology(world)
                         : Topology::uniform(static_cast<int>(options.hosts), world.size() / static_cast<int>(options.hosts));
  nlohmann::json report = nlohmann::json::array();
  if (world.rank() == 0) {
    fmt::print("dispatch + combine, {} ranks on {} hosts, {} tokens a rank, hidden {}, {} experts, top-{}; us of the "
               "slowest rank, MiB of all ranks, GB/s\n",
               world.size(), topology.num_hosts(), options.tokens, options.hidden, options.experts, options.top_k);
    fmt::print("{:<20} {:<13} {:<5} {:>9} {:>9} {:>9} {:>4} {:>9} {:>9} {:>6} {:>6} {:>6} {:>7} {:>7}\n", "workload",
               "strategy", "wire", "p50", "p95", "worst", "rank", "logical", "crossing", "algbw", "busbw", "wrong",
               "vs a2av", "/memcpy");
  }
  for (const Workload workload : workloads_named(options.workload)) {
    for (const std::string_view strategy : kStrategies) {
      if (options.strategy != "all" && options.strategy != strategy) continue;
      if (strategy == "shared" && topology.num_hosts() > 1) continue;
      report.push_back(measure(world, topology, options, std::string(strategy), workload));
      if (world.rank() == 0) print_row(report.back());
    }
  }
  int64_t wrong = 0;
  for (const nlohmann::json& row : report) wrong += row["wrong"].get<int64_t>();
  if (world.rank() == 0 && !options.json.empty()) write_json_report(options.json, report);
  CADRE_CHECK(wrong == 0, fmt::format("{} rows were wrong", wrong));
}

}  // namespace cadre
