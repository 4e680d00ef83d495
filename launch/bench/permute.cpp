// SPDX-License-Identifier: Apache-2.0
// `cadre bench permute`: rows of tokens into the order of their experts, and weighted sums of what came of them back to each
// token, beside a copy of as many bytes, in turn in the same run on routing that is drawn anew.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <numeric>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/exchange/plan.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/workloads.hpp"
#include "layers/moe/rows.hpp"

namespace cadre {
namespace {

struct BenchPermuteArguments {
  int64_t tokens = 4096;  // a rank
  int64_t hidden = 2048;
  int64_t experts = 64;
  int64_t top_k = 8;
  BenchOptions bench;
};

class PermuteBench {
 public:
  PermuteBench(const Communicator& world, const BenchPermuteArguments& options)
      : options_(options), rank_(world.rank()), rig_(world, options.bench) {
    const int64_t slots = options.tokens * options.top_k;
    x_ = rig_.inputs().take("x", DType::f32, {options.tokens, options.hidden});
    placed_ = rig_.inputs().take("placed", DType::f32, {slots, options.hidden});
    y_ = rig_.inputs().take("y", DType::f32, {options.tokens, options.hidden});
    weights_ = rig_.inputs().take("weights", DType::f32, {slots});
    const int64_t half = (options.tokens + slots + 1) / 2;
    from_ = rig_.inputs().take("copy", DType::f32, {half, options.hidden});
    into_ = rig_.inputs().take("copy", DType::f32, {half, options.hidden});
    rig_.draw(from_);
  }

  // Read and written at least, each row once, by either.
  double moved_bytes() const { return 2.0 * static_cast<double>(from_.bytes()); }

  // gather, combine, copy
  std::vector<TimesOverRanks> measure() {
    return rig_.measure([this](int64_t iteration) { prepare(iteration); },
                        {[this] { gather(); }, [this] { combine(); }, [this] { rig_.kernels().copy(from_, into_); }});
  }

 private:
  void prepare(int64_t iteration) {
    const auto top_k = static_cast<int>(options_.top_k);
    const ExpertMap here = ExpertMap::contiguous(static_cast<int>(options_.experts), 1);
    const std::vector<int32_t> ids =
        draw_routing(Workload::balanced, {options_.tokens, top_k, 0, iteration * 4096 + rank_}, here);
    const std::vector<int32_t> counts(static_cast<size_t>(options_.tokens), top_k);
    batch_ = make_expert_batch(counts, ids, here.num_experts());
    rig_.draw(x_);
    rig_.draw(weights_);
    gather();  // touches every page once
    combine();
  }

  void gather() { rig_.kernels().gather_rows(x_, index_tensor(batch_.place_row), Tensor(), placed_); }
  void combine() {
    rig_.kernels().sum_rows(placed_, index_tensor(batch_.row_places), index_tensor(batch_.row_place), weights_, y_);
  }

  BenchPermuteArguments options_;
  int rank_;
  BenchRig rig_;
  Tensor x_, placed_, y_, weights_;  // [T,H], [S,H], [T,H], [S]
  Tensor from_, into_;               // half of T + S rows
  ExpertBatch batch_;
};

void bench_permute(const Communicator& world, const BenchPermuteArguments& options) {
  PermuteBench bench(world, options);
  const std::vector<TimesOverRanks> times = bench.measure();
  if (world.rank() != 0) return;
  const double gather_ms = times[0].slowest.p50;
  const double combine_ms = times[1].slowest.p50;
  const double copy_ms = times[2].slowest.p50;
  const auto speed = [&](double ms) { return bench.moved_bytes() / ms * 1e-6; };
  fmt::print("permute {} ranks, {} tokens a rank, hidden {}, {} experts, top-{}, {}, {:.1f} MiB moved\n", world.size(),
             options.tokens, options.hidden, options.experts, options.top_k, options.bench.device,
             bench.moved_bytes() / 1048576.0);
  fmt::print("  gather   p50 {:8.3f} ms  {:7.1f} GB/s  {:5.1f} % of a copy\n", gather_ms, speed(gather_ms),
             100.0 * copy_ms / gather_ms);
  fmt::print("  combine  p50 {:8.3f} ms  {:7.1f} GB/s  {:5.1f} % of a copy\n", combine_ms, speed(combine_ms),
             100.0 * copy_ms / combine_ms);
  fmt::print("  copy     p50 {:8.3f} ms  {:7.1f} GB/s\n", copy_ms, speed(copy_ms));
  if (options.bench.json.empty()) return;
  write_json_report(options.bench.json, {{"bench", "permute"},
                                         {"device", options.bench.device},
                                         {"ranks", world.size()},
                                         {"tokens", options.tokens},
                                         {"hidden", options.hidden},
                                         {"experts", options.experts},
                                         {"top_k", options.top_k},
                                         {"moved_bytes", bench.moved_bytes()},
                                         {"gather_ms", gather_ms},
                                         {"combine_ms", combine_ms},
                                         {"copy_ms", copy_ms},
                                         {"gather_percent_of_copy", 100.0 * copy_ms / gather_ms},
                                         {"combine_percent_of_copy", 100.0 * copy_ms / combine_ms}});
}

}  // namespace

Command bench_permute_command() {
  const auto options = std::make_shared<BenchPermuteArguments>();
  return {.name = "permute",
          .summary = "measures gathering rows into expert order, weighted sums back, and a copy of the same bytes",
          .options = bench_fields({{"tokens", &options->tokens, at_least(1), "tokens of each rank"},
                                   {"hidden", &options->hidden, at_least(1), "width of a row"},
                                   {"experts", &options->experts, at_least(1), "experts of each rank"},
                                   {"top-k", &options->top_k, at_least(1), "experts of a token"}},
                                  options->bench),
          .run = [options](const Job& job) {
            check_top_k(options->top_k, options->experts);
            on_bench_ranks(job, options->bench, [&](const Communicator& world) { bench_permute(world, *options); });
          }};
}

}  // namespace cadre
