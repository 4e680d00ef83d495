// SPDX-License-Identifier: Apache-2.0
// A made-up run for tests of reports: traces of four ranks on two hosts, written by a seeded generator, and a report by the
// schema cadre.report that is plausible beside them. One host is called <b>"&.
#pragma once

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre::test {

inline const char* const kHostileHost = "<b>\"&";

struct SampleRun {
  int num_ranks = 4;
  int num_layers = 4;
  int num_micro_batches = 2;
  int64_t first_step = 10;
  int num_steps = 3;  // the last of three is the one of median length
};

// Writes the trace of one rank as its thread would: activities without gaps, requests beside them.
class SampleRank {
 public:
  SampleRank(const SampleRun& run, int rank) : run_(run), random_(static_cast<uint32_t>(7 + rank)) {
    trace_.run = {.cadre_version = "0.1.0",
                  .mpi = "Open MPI v4.1.4",
                  .num_ranks = run.num_ranks,
                  .num_hosts = 2,
                  .pipeline = 2,
                  .data = run.num_ranks / 2,
                  .expert = run.num_ranks / 2,
                  .schedule = "dualpipev",
                  .num_micro_batches = run.num_micro_batches,
                  .exchange = "flat",
                  .seed = 1,
                  .config_hash = "4be1c0ffee15"};
    trace_.rank = rank;
    trace_.host = rank < (run.num_ranks + 1) / 2 ? "node01.cluster.example" : kHostileHost;
    for (int i = 0; i < run.num_steps; ++i) {
      now_ = 1'000'000'000 + 12'500'000LL * run.num_layers * run.num_micro_batches * i + 20'000 * rank;
      step(run.first_step + i, 1.0 + 0.1 * static_cast<double>((i + 2) % 3));
    }
  }

  const RankTrace& trace() const { return trace_; }

 private:
  void add(TraceKind kind, const char* phase, int64_t begin, int64_t end, int64_t bytes = 0) {
    trace_.events.push_back({kind, phase, step_, micro_batch_, layer_, begin, end, bytes});
  }

  // About `us` microseconds, a tenth more or less.
  int64_t about(double us) { return static_cast<int64_t>(us * pace_ * (900.0 + static_cast<double>(random_() % 200))); }

  void compute(const char* phase, double us) {
    const int64_t begin = now_;
    now_ += about(us);
    add(TraceKind::compute, phase, begin, now_);
  }

  // Packs and posts; the time of arrival.
  int64_t post(const char* phase, double pack_us, double us, int64_t bytes) {
    compute(phase, pack_us);
    const int64_t end = now_ + about(us);
    add(TraceKind::flight, phase, now_, end, bytes);
    return end;
  }

  void wait(const char* phase, int64_t until) {
    if (until <= now_) return;
    add(TraceKind::wait, phase, now_, until);
    now_ = until;
  }

  // A layer of all micro-batches, side by side: what one sends flies while the other computes.
  void forward(int layer) {
    layer_ = layer;
    std::vector<int64_t> arrives(static_cast<size_t>(run_.num_micro_batches));
    const auto each = [&](auto&& action) {
      for (micro_batch_ = 0; micro_batch_ < run_.num_micro_batches; ++micro_batch_) {
        action(arrives[static_cast<size_t>(micro_batch_)]);
      }
    };
    each([&](int64_t& arrival) {
      compute("norm", 40);
      compute("attention", 700);
      compute("router", 60);
      arrival = post("dispatch", 90, 900, 1 << 20);
    });
    each([&](int64_t& arrival) {
      compute("shared experts", 240);
      wait("dispatch", arrival);
      compute("experts", 800);
      arrival = post("combine", 70, 1000, 1 << 20);
    });
    each([&](int64_t& arrival) {
      wait("combine", arrival);
      compute("combine", 50);
    });
  }

  void backward(int layer) {
    layer_ = layer;
    std::vector<int64_t> arrives(static_cast<size_t>(run_.num_micro_batches));
    const auto each = [&](auto&& action) {
      for (micro_batch_ = run_.num_micro_batches - 1; micro_batch_ >= 0; --micro_batch_) {
        action(arrives[static_cast<size_t>(micro_batch_)]);
      }
    };
    each([&](int64_t& arrival) { arrival = post("combine gradient", 90, 1300, 1 << 20); });
    each([&](int64_t& arrival) {
      compute("shared experts weights", 300);
      wait("combine gradient", arrival);
      compute("experts gradient", 850);
      arrival = post("dispatch gradient", 80, 1500, 1 << 20);
    });
    each([&](int64_t& arrival) {
      compute("experts weights", 800);
      wait("dispatch gradient", arrival);
      compute("attention gradient", 1100);
      compute("norm gradient", 60);
    });
  }

  void step(int64_t number, double pace) {
    step_ = number;
    pace_ = pace;
    const int64_t begin = now_;
    micro_batch_ = layer_ = -1;
    compute("data", 120);
    compute("embedding", 150);
    for (int layer = 0; layer < run_.num_layers; ++layer) forward(layer);
    micro_batch_ = layer_ = -1;
    compute("head", 900);
    const int64_t counts_arrive = now_ + about(5000);
    add(TraceKind::flight, "expert counts", now_, counts_arrive, 4096);
    for (int layer = run_.num_layers - 1; layer >= 0; --layer) backward(layer);
    micro_batch_ = layer_ = -1;
    wait("expert counts", counts_arrive);
    const int64_t reduced = post("gradient reduction", 200, 2500, 8 << 20);
    compute("metrics", 300);
    wait("gradient reduction", reduced);
    compute("optimizer", 1400);
    compute("other", 100);
    add(TraceKind::step, "step", begin, now_);
    const int64_t serial = now_;
    compute("attention", 9000);
    compute("experts", 9000);
    add(TraceKind::step, "step without overlap", serial, now_);
  }

  SampleRun run_;
  RankTrace trace_;
  std::mt19937 random_;
  int64_t now_ = 0;
  int64_t step_ = -1;
  int micro_batch_ = -1;
  int layer_ = -1;
  double pace_ = 1;
};

inline std::vector<RankTrace> sample_traces(const SampleRun& run = {}) {
  std::vector<RankTrace> traces;
  for (int rank = 0; rank < run.num_ranks; ++rank) traces.push_back(SampleRank(run, rank).trace());
  return traces;
}

inline nlohmann::json sample_report() {
  using nlohmann::json;
  json report = json::parse(R"json({
    "schema": "cadre.report", "version": 2,
    "run": {"cadre_version": "0.1.0", "mpi": "Open MPI v4.1.4, package: Debian, ident: 4.1.4", "hosts": 2, "ranks": 4,
      "pipeline": 2, "data": 2, "expert": 2, "schedule": "dualpipev", "micro_batches": 2, "exchange": "flat", "threads": 1,
      "seed": 1, "config_hash": "4be1c0ffee15", "first_step": 10, "last_step": 12, "clock_error_us": 3.25,
      "lost_events": 0, "name": "sample", "model": "deepseek_v3: 4 layers, hidden 512, 16 experts, top-4",
      "date": "2026-11-30T12:00:00Z", "cores": 2, "shares_cores": true},
    "headline": {"step_ms": 48.125, "serial_step_ms": 67.25, "serial": "measured", "speed_up": 1.3974,
      "tokens_per_second": 21278, "loss": 3.42, "skew_ms": 1.25, "transfer_ms": 2.25, "control_ms": 0.0, "compute_ms": 43.5, "communication_ms": 30.25, "hidden_ms": 26.75,
      "hidden_percent": 88.4, "exposed_ms": 3.5, "exposed_percent_of_step": 7.3, "idle_ms": 1.125, "exchange_ms": 21.0,
      "exchange_hidden_percent": 91.2},
    "efficiency": {"load_balance": 0.97, "communication": 0.92, "parallel": 0.89},
    "bubble": {"measured_idle_ms": 5.25, "simulated_idle_ms": 4.5, "formula_idle_ms": 4.125,
      "formula": "(R/2-1)(F&B+B-3W)"},
    "without_overlap": {"passes_ms": 67.25, "overlapped_passes_ms": 48.125, "exposed_ms": 22.5, "exchange_ms": 23.5, "exchange_hidden_percent": 1.5,
      "speed_up": 1.397, "step_ms": 67.25, "step_speed_up": 1.3974},
    "steady": {"time_ms": 38.5, "compute_ms": 36.0, "exchange_ms": 20.5, "exchange_hidden_ms": 19.5,
      "exchange_hidden_percent": 95.1},
    "notes": ["7.3 % of the step is exposed: set <b>parallel.schedule</b>"]
  })json");
  const auto add_phase = [&](const char* phase, const char* phase_class, double mean, const json& bytes) {
    const bool flies = std::string(phase_class) != "compute";
    report["phases"].push_back(
        {{"phase", phase},
         {"class", phase_class},
         {"min_ms", 0.9 * mean},
         {"mean_ms", mean},
         {"max_ms", 1.15 * mean},
         {"variation_percent", 7.25},
         {"percent_of_step", mean / 0.48125},
         {"bytes", bytes},
         {"message_gigabytes_per_second", flies ? json(bytes.get<double>() / mean / 1e6) : json()},
         {"exposed_ms", flies ? json(0.1 * mean) : json()},
         {"hidden_percent", flies ? json(90.0) : json()}});
  };
  add_phase("dispatch gradient", "exchange", 12.0, 33554432);
  add_phase("combine", "exchange", 8.0, 33554432);
  add_phase("dispatch", "exchange", 7.25, 33554432);
  add_phase("gradient reduction", "reduction", 2.5, 33554432);
  add_phase("expert counts", "control", 0.02, 4096);
  add_phase("experts gradient", "compute", 6.75, nullptr);
  add_phase("experts", "compute", 6.5, nullptr);
  add_phase("experts weights", "compute", 6.25, nullptr);
  add_phase("attention", "compute", 5.5, nullptr);
  add_phase("optimizer", "compute", 1.5, nullptr);
  add_phase("router", "compute", 0.5, nullptr);
  add_phase("metrics handling", "compute", 0.04, nullptr);
  for (int layer = 0; layer < 4; ++layer) {
    report["layers"].push_back({{"layer", layer},
                                {"compute_ms", 9.5 + 0.2 * layer},
                                {"communication_ms", 7.25 - 0.1 * layer},
                                {"exposed_ms", 0.75},
                                {"hidden_percent", 89.75},
                                {"tokens_max_over_mean", layer == 0 ? json() : json(1.2 + 0.1 * layer)}});
  }
  for (int rank = 0; rank < 4; ++rank) {
    const char* host = rank < 2 ? "node01.cluster.example" : kHostileHost;
    report["ranks"].push_back({{"rank", rank},
                               {"host", host},
                               {"step_ms", 48.0 + 0.05 * rank},
                               {"compute_ms", 43.0 + 0.3 * rank},
                               {"communication_ms", 30.0 + 0.1 * rank},
                               {"hidden_percent", 87.5 + 0.5 * rank},
                               {"skew_ms", 2.0 - 0.5 * rank},
                               {"transfer_ms", 1.5},
                               {"control_ms", 0.0},
                               {"idle_ms", 1.125},
                               {"compute_percent_of_step", 89.5 + 0.5 * rank}});
  }
  report["stragglers"] = json::array();
  for (int rank = 3; rank >= 2; --rank) {
    report["stragglers"].push_back({{"rank", rank},
                                    {"host", kHostileHost},
                                    {"times_last", 40 * rank},
                                    {"share_percent", 16.0 * rank},
                                    {"mean_late_us", 140.5 * rank}});
  }
  std::mt19937 random(3);
  for (int step = 0; step < 40; ++step) {
    const double skew = 0.2 + 0.6 / (1 + 0.2 * step) + 0.0005 * static_cast<double>(random() % 100);
    report["balance"].push_back(
        {{"step", step}, {"expert_cv", skew}, {"device_cv", 0.3 * skew}, {"max_vio", 2.4 * skew}, {"drop_rate", 0.0}});
  }
  for (int layer = 1; layer < 4; ++layer) {
    json counts = json::array();
    for (int expert = 0; expert < 16; ++expert) counts.push_back(layer == 1 && expert == 5 ? 0 : 400 + random() % 900);
    report["expert_load"].push_back({{"layer", layer}, {"counts", counts}});
  }
  report["expert_load"][2]["counts"][3] = 2600;
  json history = {{"layer", 1}, {"first_steps", json::array()}, {"counts", json::array()}};
  for (int step = 0; step < 40; step += 2) {
    json counts = json::array();
    for (int expert = 0; expert < 16; ++expert) counts.push_back(expert == 5 && step > 20 ? 0 : 400 + random() % 900);
    history["first_steps"].push_back(step);
    history["counts"].push_back(std::move(counts));
  }
  report["load_over_time"].push_back(std::move(history));
  return report;
}

}  // namespace cadre::test
