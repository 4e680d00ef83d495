// SPDX-License-Identifier: Apache-2.0
// cadre bench: what parts of a step cost on this machine, each beside its floor.
#include "launch/bench/bench.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "comm/job/wait.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/parallel/devices.hpp"

namespace cadre {

Summary summarise(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto percentile = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return values[std::max<size_t>(rank, 1) - 1];
  };
  return {values.front(), percentile(0.5), percentile(0.95)};
}

TimesOverRanks gather_times(const Communicator& world, const std::vector<double>& times) {
  const size_t count = times.size();
  const std::vector<double> all = wait(world.all_gather(times));

  TimesOverRanks result;
  std::vector<double> slowest(count, 0.0);
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(rank * count);
    const double p50 = summarise({begin, begin + static_cast<std::ptrdiff_t>(count)}).p50;
    if (p50 > result.worst_rank_p50) {
      result.worst_rank = rank;
      result.worst_rank_p50 = p50;
    }
    for (size_t i = 0; i < count; ++i) slowest[i] = std::max(slowest[i], begin[static_cast<std::ptrdiff_t>(i)]);
  }
  result.slowest = summarise(slowest);
  return result;
}

void write_json_report(const std::string& path, const nlohmann::json& json) {
  write_text_file(path, json.dump(2) + "\n");
}

void check_top_k(int64_t top_k, int64_t experts) {
  CADRE_CHECK(top_k <= experts, fmt::format("--top-k {} with --experts {}, allowed: 1 to {}", top_k, experts, experts),
              "lower --top-k or raise --experts");
}

Field device_option(std::string& device) {
  return {"device", &device, one_of({"cpu", "cuda"}), "device that computes"};
}

Command bench_command() {
  return {.name = "bench",
          .summary = "measures parts of a step and the limit of each",
          .parts = {bench_attention_command(), bench_gemm_command(), bench_exchange_command(), bench_layer_command(),
                    bench_overlap_command(), bench_permute_command(), bench_router_command(), bench_step_command(),
                    bench_generate_command()}};
}

std::vector<Field> bench_fields(std::vector<Field> own, BenchOptions& options) {
  own.push_back(device_option(options.device));
  own.push_back({"iterations", &options.iterations, at_least(1), "measured iterations"});
  own.push_back({"warmup", &options.warmup, at_least(0), "iterations before the measurement"});
  own.push_back({"threads", &options.threads, at_least(1), "threads that compute in a rank"});
  own.push_back(ranks_option(options.ranks));
  own.push_back({"json", &options.json, any(), "also write the result to this file, as JSON"});
  return own;
}

void on_bench_ranks(const Job& job, const BenchOptions& options, const std::function<void(const Communicator&)>& body) {
  job.on_ranks(options.ranks, [&](Communicator world) {
    const Communicator ranks = over_devices(std::move(world), {.device = options.device}, {});
    body(ranks);
  });
}

void draw_rows(const Kernels& kernels, const Tensor& rows, uint64_t id) {
  OnHost drawn(rows, kernels.memory());
  const Random random(7, "bench", id);
  for (int64_t i = 0; i < rows.numel(); ++i) {
    drawn->data<float>()[i] = static_cast<float>(random.uniform(static_cast<uint64_t>(i)) * 2.0 - 1.0);
  }
  drawn.put_back();
}

BenchRig::BenchRig(const Communicator& world, const BenchOptions& options, const std::string& precision)
    : options_(options),
      lane_(0, world.duplicate("expert"), world.duplicate("data")),
      kernels_(make_kernels(world, {.device = options.device, .precision = precision, .threads = options.threads},
                            RowBits::independent)),
      clock_(kernels_->make_clock()) {}

void BenchRig::draw(const Tensor& rows) {
  constexpr uint64_t kMaxRanks = 1U << 20;
  draw_rows(*kernels_, rows, num_drawn_++ * kMaxRanks + static_cast<uint64_t>(lane_.data_group().rank()));
}

std::vector<TimesOverRanks> BenchRig::measure(const std::function<void(int64_t)>& before,
                                              const std::vector<std::function<void()>>& works) {
  std::vector<std::vector<double>> times(works.size());
  for (int64_t i = -options_.warmup; i < options_.iterations; ++i) {
    before(i + options_.warmup);
    for (size_t work = 0; work < works.size(); ++work) {
      const double ms = timed_ms(works[work]);
      if (i >= 0) times[work].push_back(ms);
    }
  }
  // A piece of work is over when its slowest rank is done.
  std::vector<TimesOverRanks> over_ranks;
  for (const std::vector<double>& one : times) over_ranks.push_back(gather_times(lane_.data_group(), one));
  return over_ranks;
}

double BenchRig::timed_ms(const std::function<void()>& work) {
  arena_.release({});
  kernels_->synchronize();
  Request together = lane_.data_group().barrier();
  wait(together);
  clock_->start();
  work();
  return clock_->stop_ms();
}

}  // namespace cadre
