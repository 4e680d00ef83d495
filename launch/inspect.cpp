// SPDX-License-Identifier: Apache-2.0
// cadre inspect: the size of a model, from its shape alone.
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "comm/group/topology.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/model/accounting.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/parallel/optimizer_shards.hpp"

namespace cadre {
namespace {

struct InspectArguments {
  std::string model;
  std::string json_file;
  int64_t ranks = 1;
  int64_t pipeline = 1;
  int64_t expert = 0;
  int64_t sequence_length = 0;
};

struct RankBytes {
  size_t parameters = 0;
  size_t gradients = 0;
  size_t optimizer = 0;  // its share of the two moments of AdamW

  size_t total() const { return parameters + gradients + optimizer; }
};

// Of the rank that holds most: the first of its row, which has as many experts as any, in the row that holds most.
RankBytes bytes_of_a_rank(const ModelConfig& config, const Grid& grid) {
  CADRE_CHECK(grid.pipeline <= config.num_hidden_layers,
              fmt::format("--pipeline = {}, allowed: at most the {} layers of the model", grid.pipeline,
                          config.num_hidden_layers),
              "each stage has at least one layer");
  PipelineRoutes routes = {{std::vector<int>(static_cast<size_t>(grid.pipeline))}};  // a stage for each row
  std::iota(routes.routes.front().begin(), routes.routes.front().end(), 0);
  RankBytes most;
  for (int row = 0; row < grid.pipeline; ++row) {
    Model model(config, {StagePlace{row, grid.pipeline}}, make_expert_map(config, grid.expert), 0);
    ParameterStore store;
    store.add_all(model);
    store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/true);
    const OptimizerShards shards(model, routes, grid, row * grid.data, /*sharded=*/true);
    RankBytes bytes = {store.value_bytes(), store.grad_bytes()};
    for (const Parameter* parameter : store.parameters()) {
      if (parameter->placement != Placement::buffer && shards.keeps(*parameter)) {
        bytes.optimizer += 2 * parameter->value.bytes();
      }
    }
    if (bytes.total() > most.total()) most = bytes;
  }
  return most;
}

// 1,234,567
std::string with_commas(int64_t number) {
  std::string digits = fmt::format("{}", number);
  for (auto at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) digits.insert(static_cast<size_t>(at), 1, ',');
  return digits;
}

std::string mebibytes(size_t bytes) { return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1 << 20)); }

std::filesystem::path find_config(const std::string& argument) {
  if (std::filesystem::is_regular_file(argument)) return argument;
  return find_checkpoint(argument) / "config.json";
}

void print_counts(const ModelConfig& config, const ParameterCount& count) {
  fmt::print("parameters   {} in all, {} active for a token, {} of them in the embedding\n", with_commas(count.total),
             with_commas(count.active), with_commas(count.embedding));
  if (count.mtp_modules == 0) return;
  fmt::print("mtp          {} more, not counted above, for {} further token{}\n", with_commas(count.mtp_modules),
             config.num_nextn_predict_layers, config.num_nextn_predict_layers == 1 ? "" : "s");
}

constexpr std::array<int64_t, 4> kCoverageTokens = {1, 64, 200, 500};
constexpr int64_t kFinest = 8;

std::vector<ModelCost> rows_of(const DenseComparison& costs) {
  return {costs.one_expert, costs.mixture, costs.met_by_a_token, costs.all_experts};
}

void print_experts(const ModelConfig& config, int64_t length) {
  const int64_t experts = config.n_routed_experts;
  const int64_t top_k = config.num_experts_per_tok;
  std::string coverage;
  for (const int64_t tokens : kCoverageTokens) {
    coverage += fmt::format(" {:.2f} % ({}),", 100.0 * expected_coverage(experts, top_k, tokens), tokens);
  }
  fmt::print("coverage     of the {} experts of a layer, after so many tokens of a balanced router:{} 99 % ({})\n",
             experts, coverage, tokens_to_cover(experts, top_k, 0.99));
  fmt::print("\n{:<28}{:>18}{:>18}{:>16}{:>8}\n", "", "parameters", "active", "FLOPs a token", "cost");
  const DenseComparison costs = compare_with_dense(config, length);
  for (const ModelCost& cost : rows_of(costs)) {
    fmt::print("{:<28}{:>18}{:>18}{:>16.4g}{:>7.2f}x\n", cost.name, cost.parameters.total, cost.parameters.active,
               cost.flops_per_token, cost.flops_per_token / costs.one_expert.flops_per_token);
  }
  fmt::print("\n{:<28}{:>18}{:>18}{:>16}{:>16}\n", "experts cut in", "experts", "of a token", "width", "combinations");
  for (const FineGrained& shape : fine_grained_shapes(config, kFinest)) {
    fmt::print("{:<28}{:>18}{:>18}{:>16}{:>16.6g}\n", shape.factor, shape.experts, shape.top_k, shape.width,
               shape.combinations);
  }
}

nlohmann::json experts_json(const ModelConfig& config, int64_t length) {
  nlohmann::json json = {{"coverage", nlohmann::json::array()},
                         {"beside_dense", nlohmann::json::array()},
                         {"fine_grained", nlohmann::json::array()}};
  for (const int64_t tokens : kCoverageTokens) {
    json["coverage"].push_back(
        {{"tokens", tokens},
         {"share", expected_coverage(config.n_routed_experts, config.num_experts_per_tok, tokens)}});
  }
  for (const ModelCost& cost : rows_of(compare_with_dense(config, length))) {
    json["beside_dense"].push_back({{"model", cost.name},
                                    {"total", cost.parameters.total},
                                    {"active", cost.parameters.active},
                                    {"flops_per_token", cost.flops_per_token}});
  }
  for (const FineGrained& shape : fine_grained_shapes(config, kFinest)) {
    json["fine_grained"].push_back({{"factor", shape.factor},
                                    {"experts", shape.experts},
                                    {"top_k", shape.top_k},
                                    {"width", shape.width},
                                    {"combinations", shape.combinations},
                                    {"router_parameters", shape.router_parameters}});
  }
  return json;
}

void run_inspect(const InspectArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const std::filesystem::path path = find_config(options.model);
  std::vector<std::string> unused;
  const ModelConfig config = read_model_config(path, &unused);
  const Grid grid =
      Grid::make(static_cast<int>(options.ranks), static_cast<int>(options.pipeline), static_cast<int>(options.expert));
  const int64_t length = options.sequence_length == 0 ? config.max_position_embeddings : options.sequence_length;
  const ParameterCount count = count_parameters(config);
  const double flops = flops_per_token(config, length);
  const RankBytes bytes = bytes_of_a_rank(config, grid);

  fmt::print("{}", unused_keys_note(path, unused));
  print_counts(config, count);
  fmt::print("FLOPs        {:.4g} a token, forward and backward, at sequence length {}\n", flops, length);
  fmt::print("memory       {} a rank on {} ranks (pipeline {}, expert {}): parameters {}, gradients {}, optimizer {}\n",
             mebibytes(bytes.total()), options.ranks, grid.pipeline, grid.expert, mebibytes(bytes.parameters),
             mebibytes(bytes.gradients), mebibytes(bytes.optimizer));
  const bool has_mixtures = !moe_layers_of(config).empty();
  if (has_mixtures) print_experts(config, length);
  if (options.json_file.empty()) return;
  const nlohmann::json json = {
      {"schema", "cadre.inspect/1"},
      {"model", to_json(config)},
      {"parameters",
       {{"total", count.total},
        {"active", count.active},
        {"embedding", count.embedding},
        {"mtp_modules", count.mtp_modules}}},
      {"sequence_length", length},
      {"flops_per_token", flops},
      {"ranks", options.ranks},
      {"pipeline", grid.pipeline},
      {"expert", grid.expert},
      {"bytes_per_rank",
       {{"parameters", bytes.parameters},
        {"gradients", bytes.gradients},
        {"optimizer", bytes.optimizer},
        {"total", bytes.total()}}},
      {"experts", has_mixtures ? experts_json(config, length) : nlohmann::json()},
  };
  write_text_file(options.json_file, json.dump(2) + "\n");
}

}  // namespace

Command inspect_command() {
  const auto options = std::make_shared<InspectArguments>();
  return {.name = "inspect",
          .summary = "prints the size of a model: parameters, FLOPs, memory of a rank",
          .arguments = {{"MODEL", &options->model, any(), "a config.json, a checkpoint, or the folder of a run"}},
          .options = {{"json", &options->json_file, any(), "also write the result to this file, as JSON"},
                      {"ranks", &options->ranks, between(1, 1 << 20), "ranks of the job"},
                      {"pipeline", &options->pipeline, between(1, 1 << 20), "number of pipeline stages"},
                      {"expert", &options->expert, between(0, 1 << 20),
                       "ranks that share one set of experts; 0: all ranks of a row"},
                      {"sequence-length", &options->sequence_length, at_least(0),
                       "sequence length for the FLOPs of attention; 0: the longest of the model"}},
          .run = [options](const Job& job) { run_inspect(*options, job); }};
}

}  // namespace cadre
