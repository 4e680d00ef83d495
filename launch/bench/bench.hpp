// SPDX-License-Identifier: Apache-2.0
// The parts of `cadre bench`: what parts of a step cost on this machine, each beside its floor.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "comm/group/communicator.hpp"
#include "comm/progress/lane.hpp"
#include "launch/command.hpp"
#include "launch/job.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/tensor/arena.hpp"

namespace cadre {

// Times of repeated work, over iterations and ranks, and the file they go to.
struct Summary {
  double min = 0.0;
  double p50 = 0.0;
  double p95 = 0.0;
};

// Nearest-rank percentiles of at least one value.
Summary summarise(std::vector<double> values);

struct TimesOverRanks {
  Summary slowest;     // over iterations, of the slowest rank in each
  int worst_rank = 0;  // the one with the largest median
  double worst_rank_p50 = 0.0;
};

// Collective: every rank gives as many times. The same result on all ranks.
TimesOverRanks gather_times(const Communicator& world, const std::vector<double>& times);

// Writes `json` to `path`; throws when it cannot.
void write_json_report(const std::string& path, const nlohmann::json& json);

Command bench_attention_command();
Command bench_gemm_command();
Command bench_generate_command();
Command bench_exchange_command();
Command bench_layer_command();
Command bench_overlap_command();
Command bench_permute_command();
Command bench_router_command();
Command bench_step_command();

// --device of a part: what computes.
Field device_option(std::string& device);

// Throws when there are fewer experts than a token is to have.
void check_top_k(int64_t top_k, int64_t experts);

// What benches of kernels and layers share: common options, the back end of a rank with memory for inputs and for work,
// fresh random rows, and times by the clock of the device that computes, of all ranks.
struct BenchOptions {
  std::string device = "cpu";
  int64_t iterations = 20;
  int64_t warmup = 3;
  int64_t threads = 1;
  int64_t ranks = 0;
  std::string json;
};

// `own` and behind them those of every bench.
std::vector<Field> bench_fields(std::vector<Field> own, BenchOptions& options);

// `body` on each rank of the bench.
void on_bench_ranks(const Job& job, const BenchOptions& options, const std::function<void(const Communicator&)>& body);

// Values in [-1, 1) that `id` tells from others, put there as the results of kernels are: memory of a device stays there.
void draw_rows(const Kernels& kernels, const Tensor& rows, uint64_t id);

class BenchRig {
 public:
  // Collective over `world`.
  BenchRig(const Communicator& world, const BenchOptions& options, const std::string& precision = "fp32");

  Lane& lane() { return lane_; }
  const Kernels& kernels() const { return *kernels_; }
  Arena& inputs() { return inputs_; }
  Arena& arena() { return arena_; }  // empty when a piece of work begins

  // Other values in every call and on every rank.
  void draw(const Tensor& rows);

  // `before(i)` and then each of the `works`, so many times as the options say; times in milliseconds of each of the works.
  // Collective: all ranks begin a piece of work together.
  std::vector<TimesOverRanks> measure(const std::function<void(int64_t)>& before,
                                      const std::vector<std::function<void()>>& works);
  // The milliseconds that this rank takes for the work. Collective: all ranks begin it together.
  double timed_ms(const std::function<void()>& work);

 private:
  BenchOptions options_;
  Lane lane_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<DeviceClock> clock_;
  Arena inputs_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  Arena arena_{Arena::Mode::real, /*poison=*/false, kernels_->memory()};
  uint64_t num_drawn_ = 0;
};

}  // namespace cadre
