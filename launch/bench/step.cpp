// SPDX-License-Identifier: Apache-2.0
// `cadre bench step`: one micro-batch of a whole model, forward and backward, and the update, by phase, beside the time of the
// same products with each weight by the fastest library, measured in the same process on all ranks at once.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/base/trace.hpp"
#include "comm/job/wait.hpp"
#include "launch/bench/bench.hpp"
#include "launch/bench/gemm_products.hpp"
#include "layers/model/config.hpp"
#include "runtime/config/run_file.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/devices.hpp"
#include "runtime/train/probe.hpp"
#include "runtime/train/resume.hpp"

namespace cadre {
namespace {

struct BenchStepArguments {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t iterations = 5;
  int64_t ranks = 0;
  std::string json;
};

// Layers with products, by the phase of their forward pass. Order matters: the first part that a name has decides.
struct ProductKind {
  const char* phase;
  std::string_view part_of_name;
};
constexpr std::array kKinds = {ProductKind{"attention", ".self_attn."}, ProductKind{"shared experts", ".shared_expert"},
                               ProductKind{"experts", ".experts."},     ProductKind{"router", ".mlp.gate.weight"},
                               ProductKind{"dense ffn", ".mlp."},       ProductKind{"head", "lm_head."}};

// Of the forward pass, input gradients, and weight gradients.
constexpr std::array kDirections = {"", " gradient", " weights"};

struct PhaseFloor {
  double gflop = 0.0;
  double seconds = 0.0;
};
using Floors = std::map<std::string, PhaseFloor>;

// The time of the products of a micro-batch by the fastest library, on this rank.
class FloorMaker {
 public:
  FloorMaker(const RunConfig& config, Worker& worker, int64_t iterations)
      : config_(config), worker_(worker), iterations_(iterations) {
    tokens_ = config.train.batch / worker.world().size() * config.data.sequence_length;
  }

  // Collective: all ranks multiply at once.
  Floors make() {
    for (const Parameter* weight : worker_.store().parameters()) add(*weight);
    add_scores();
    return floors_;
  }

 private:
  void add(const Parameter& weight) {
    if (weight.value.num_dims() != 2 || !is_trained(weight.placement)) return;
    const auto kind = std::ranges::find_if(
        kKinds, [&](const ProductKind& k) { return weight.name().find(k.part_of_name) != std::string::npos; });
    if (kind == kKinds.end()) return;  // a table of the embedding is no product
    const ModelConfig& model = config_.model;
    const int64_t group = worker_.expert_group().size();
    const bool is_expert = weight.placement == Placement::expert;
    const int64_t met_rows = is_expert ? tokens_ * model.num_experts_per_tok * group / model.n_routed_experts : tokens_;
    const int64_t rows = std::max<int64_t>(1, met_rows);
    const ProductShape shape = {rows, weight.value.dim(0), weight.value.dim(1)};
    const double gflop = 2e-9 * static_cast<double>(rows) * static_cast<double>(weight.value.numel());
    const ProductRates rates = best_rates(shape);
    if (std::string_view(kind->phase) == "attention") fastest_ = best_of(fastest_, rates);
    add_work(kind->phase, gflop, rates);
  }

  void add_work(const std::string& phase, double gflop, const ProductRates& rates) {
    const double of_direction[] = {rates.forward, rates.input_grad, rates.weight_grad};
    for (size_t i = 0; i < kDirections.size(); ++i) {
      PhaseFloor& floor = floors_[phase + kDirections[i]];
      floor.gflop += gflop;
      floor.seconds += gflop / of_direction[i];
    }
  }

  // Scores and weighted sums, which are products without a weight: at the largest rate of attention's products. In backward
  // twice as many, all of them in the phase of input gradients.
  void add_scores() {
    const double gflop = 1e-9 * static_cast<double>(tokens_ * config_.model.num_hidden_layers) *
                         attended_flops(config_.model, config_.data.sequence_length);
    floors_["attention"].gflop += gflop;
    floors_["attention"].seconds += gflop / fastest_.forward;
    floors_["attention gradient"].gflop += 2.0 * gflop;
    floors_["attention gradient"].seconds += 2.0 * gflop / fastest_.input_grad;
  }

  ProductRates best_rates(const ProductShape& shape) {
    const auto known = known_.find(shape);
    if (known != known_.end()) return known->second;
    const Precision precision = config_.compute.precision == "fp32" ? Precision::fp32 : Precision::bf16;
    ProductRates best;
    for (const ProductWay& way : ways_to_multiply("cpu", precision, config_.compute.products)) {
      Request together = worker_.world().barrier();
      worker_.await(together);
      const auto kernels = kernels_of_way("cpu", precision, worker_.job().threads(), way.products);
      best = best_of(best, GemmProducts(*kernels, 1, shape).single(iterations_));
    }
    return known_[shape] = best;
  }

  const RunConfig& config_;
  Worker& worker_;
  int64_t iterations_;
  int64_t tokens_ = 0;
  std::map<ProductShape, ProductRates> known_;
  ProductRates fastest_;
  Floors floors_;
};

double median_update_seconds(Worker& worker, const RunConfig& config, int64_t iterations) {
  worker.store().complete_grads();
  Optimizer optimizer(worker.store(), config.train);
  std::vector<double> seconds;
  for (int64_t i = 1; i <= iterations; ++i) {
    const int64_t begin = trace_clock_ns();
    optimizer.update(worker.kernels(), 0.0, 0.0, i);
    worker.kernels().synchronize();
    seconds.push_back(static_cast<double>(trace_clock_ns() - begin) * 1e-9);
  }
  return summarise(seconds).p50;
}

struct StepRow {
  std::string phase;
  double ms = 0.0;
  double gflop = 0.0;
  double floor_ms = 0.0;
};

// Means over ranks. All ranks have the same phases.
std::vector<StepRow> rows_of(const PhaseSeconds& phases, const Floors& floors, const Communicator& world) {
  std::vector<StepRow> rows;
  std::vector<double> values;
  for (const auto& [phase, seconds] : phases) {
    const auto found = floors.find(phase);
    const PhaseFloor floor = found == floors.end() ? PhaseFloor{} : found->second;
    rows.push_back({.phase = phase});
    values.insert(values.end(), {seconds * 1e3, floor.gflop, floor.seconds * 1e3});
  }
  values = wait(world.all_reduce(std::move(values), ReduceOp::sum));
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].ms = values[3 * i] / world.size();
    rows[i].gflop = values[3 * i + 1] / world.size();
    rows[i].floor_ms = values[3 * i + 2] / world.size();
  }
  std::ranges::stable_sort(rows, std::ranges::greater(), &StepRow::ms);
  return rows;
}

StepRow total_of(const std::vector<StepRow>& rows) {
  StepRow total = {.phase = "all"};
  for (const StepRow& row : rows) {
    total.ms += row.ms;
    total.gflop += row.gflop;
    total.floor_ms += row.floor_ms;
  }
  return total;
}

void print_row(const StepRow& row) {
  if (row.gflop == 0.0) {
    fmt::print("  {:<26} {:>9.2f}\n", row.phase, row.ms);
    return;
  }
  fmt::print("  {:<26} {:>9.2f} {:>9.2f} {:>9.1f} {:>12.2f} {:>7.1f} %\n", row.phase, row.ms, row.gflop,
             row.gflop / row.ms * 1e3, row.floor_ms, 100.0 * row.floor_ms / row.ms);
}

nlohmann::json to_json(const StepRow& row) {
  return {{"phase", row.phase}, {"ms", row.ms}, {"gflop", row.gflop}, {"floor_ms", row.floor_ms}};
}

void bench_step(const Communicator& world, const BenchStepArguments& options, const RunConfig& run) {
  std::string note;
  const RunConfig config = one_micro_batch_of(with_products(world, run, note), world.size());
  check(config, world.size());
  Probe probe(world, config);
  PhaseSeconds phases = probe.median_of_passes(static_cast<int>(options.iterations));
  phases["optimizer"] = median_update_seconds(probe.worker(), config, options.iterations);
  const Floors floors = FloorMaker(config, probe.worker(), options.iterations).make();
  const std::vector<StepRow> rows = rows_of(phases, floors, world);
  if (world.rank() != 0) return;
  const StepRow total = total_of(rows);
  const int64_t tokens = config.train.batch / world.size() * config.data.sequence_length;
  fmt::print("step of one micro-batch, {} ranks, {} tokens a rank, {}, median of {}; {} parameters\n", world.size(),
             tokens, config.compute.precision, options.iterations, count_parameters(config.model).total);
  fmt::print("  {:<26} {:>9} {:>9} {:>9} {:>12} {:>9}\n", "phase", "ms", "GFLOP", "GFLOP/s", "best products", "share");
  for (const StepRow& row : rows) {
    if (row.gflop > 0.0 || row.ms >= 1e-3 * total.ms) print_row(row);
  }
  print_row(total);
  if (options.json.empty()) return;
  nlohmann::json json = {{"bench", "step"},
                         {"ranks", world.size()},
                         {"tokens", tokens},
                         {"precision", config.compute.precision},
                         {"step_ms", total.ms},
                         {"gflop", total.gflop},
                         {"floor_ms", total.floor_ms},
                         {"phases", nlohmann::json::array()}};
  for (const StepRow& row : rows) json["phases"].push_back(to_json(row));
  write_json_report(options.json, json);
}

}  // namespace

Command bench_step_command() {
  const auto options = std::make_shared<BenchStepArguments>();
  return {.name = "step",
          .summary = "measures a micro-batch of a whole model and the update by phase, beside the products alone",
          .arguments = {{"RUN.toml", &options->run_file, any(), "run file; its grid counts, its schedule does not"}},
          .overrides = &options->overrides,
          .options = {{"iterations", &options->iterations, at_least(1), "measured passes"},
                      ranks_option(options->ranks),
                      {"json", &options->json, any(), "also write the result to this file, as JSON"}},
          .run = [options](const Job& job) {
            const RunConfig run = load_run_config(options->run_file, options->overrides);
            check(run, job.num_ranks(options->ranks));
            job.on_ranks(options->ranks, [&](const Communicator& world) { bench_step(world, *options, run); });
          }};
}

}  // namespace cadre
