// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/memory_plan.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "comm/base/check.hpp"
#include "comm/group/topology.hpp"
#include "comm/progress/engine.hpp"
#include "comm/transport/local.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/partner_copies.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/step_changes.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/parallel/expert_move.hpp"
#include "runtime/parallel/expert_placement.hpp"
#include "runtime/parallel/micro_batch.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"
#include "runtime/train/host_memory.hpp"

namespace cadre {
namespace {

// What OpenBLAS and MPI were seen to take for themselves once they are used.
constexpr size_t kLibraryBytes = size_t{7} << 20;
// A large block begins and ends with a huge page (comm/base/buffer.cpp).
constexpr size_t kHugePage = size_t{2} << 20;
constexpr char kActivations[] = "activations: ";

// A micro-batch at one stage, there and back.
Task<void> dry_pass(Stage& stage, LaneContext& ctx, TokenBatch batch, int64_t hidden, Stage::Weights weights) {
  const ArenaScope scope(ctx.arena);
  const Tensor rows(nullptr, ctx.dtype, {batch.ids.dim(0), hidden});
  Stage::Saved saved;
  Task<Stage::Output> forward = stage.forward(ctx, batch, rows, saved);
  co_await forward;
  const WorkScope work(ctx.arena);
  Task<Tensor> backward = stage.backward(ctx, saved, rows, weights);
  co_await backward;
}

TokenBatch tokens_of(int64_t num_sequences, int64_t length) {
  const Tensor ids(nullptr, DType::i32, {num_sequences * length});
  return {ids, ids, {num_sequences, length, ids}};
}

// Whether rows may be read where they are computed: then each lane computes in memory of its own, which others see. Rows of a
// device are sent as messages, and so are those of a group of one rank.
bool may_read_in_place(const RunConfig& config, const Grid& grid) {
  const std::string& strategy = config.exchange.strategy;
  return config.compute.device == "cpu" && (strategy != "auto" || grid.expert > 1) && strategy != "flat" &&
         strategy != "all_gather";
}

// Whether no message takes memory for rows.
bool reads_in_place(const RunConfig& config, const Topology& topology, const Grid& grid) {
  const std::string& strategy = config.exchange.strategy;
  return may_read_in_place(config, grid) && (strategy == "shared" || (strategy == "auto" && topology.num_hosts() == 1));
}

size_t in_huge_pages(size_t bytes) {
  return bytes < kHugePage ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// Gradients of experts that other ranks hold too: of each the own part arrives from all others.
size_t replicated_bytes(const ParameterStore& store) {
  size_t bytes = 0;
  for (const Parameter* parameter : store.parameters())
    bytes += parameter->holders.size() > 1 ? parameter->grad.bytes() : 0;
  return bytes;
}

// What comes of experts in a step.
size_t moving_bytes(const RunConfig& config, Model& model, const ParameterStore& store) {
  const auto bytes_of = [&](const Parameter& parameter) {
    if (parameter.placement != Placement::expert) return size_t{0};
    return parameter.value.bytes() + moment_bytes(parameter, config.train) + parameter.grad.bytes();
  };
  size_t all = 0;
  for (const Parameter* parameter : store.parameters()) all += bytes_of(*parameter);
  size_t most_of_layer = 0;
  for (const auto& stage : model.stages()) {
    for (int bucket = 0; bucket < stage->num_buckets(); ++bucket) {
      size_t bytes = 0;
      stage->each_parameter(bucket, [&](const Parameter& parameter) { bytes += bytes_of(parameter); });
      most_of_layer = std::max(most_of_layer, bytes);
    }
  }
  return std::min(all, std::max(most_of_layer, kMostArrivingBytes));
}

// Of an embedding whose copy is on another rank the own half arrives from there, beside the own one.
size_t embedding_sum_bytes(const Model& model) {
  Parameter* const table = model.stages().front()->embedding_table();
  Parameter* const copy = model.stages().back()->embedding_copy();
  const bool needs_other = embeds_at_end(model.config()) && model.stages().front()->place().count > 1;
  if (!needs_other || (table == nullptr) == (copy == nullptr)) return 0;
  return (table != nullptr ? table : copy)->grad.bytes();
}

// What arrives of sums under way: pieces of a few arrays. Those of a device are added where they lie, or on the host.
size_t reduced_bytes(const RunConfig& config, const Model& model, ParameterStore& store, const Grid& grid,
                     const PipelineRoutes& routes) {
  const auto under_way = [&](size_t bytes, int ranks) {
    return config.compute.device == "cpu" ? std::min(bytes, ReductionQueue::most_bytes(ranks)) : 0;
  };
  const auto rows = static_cast<int>(routes.rows_of(routes.stages_of(0).front().index).size());
  const auto bytes_of = [&](Placement placement) {
    return static_cast<size_t>(store.numel(placement)) * sizeof(float);
  };
  size_t bytes = replicated_bytes(store) + embedding_sum_bytes(model);
  const int shared_ranks = grid.data * rows;
  const int expert_ranks = grid.data / grid.expert * rows;
  if (shared_ranks > 1) bytes += under_way(bytes_of(Placement::shared), shared_ranks);
  if (expert_ranks > 1) bytes += under_way(bytes_of(Placement::expert), expert_ranks);
  return bytes;
}

GradientShards::Passes passes_of(const Program& program, int row) {
  const OpList& ops = program.ops[static_cast<size_t>(row)];
  const auto is_backward = [](const Op& op) {
    return op.kind == OpKind::backward || op.kind == OpKind::backward_input || op.kind == OpKind::overlapped;
  };
  const auto merges = [&](const Op& op) { return is_backward(op) && op.with_next; };
  if (std::ranges::any_of(ops, merges)) return GradientShards::Passes::side_by_side;
  return std::ranges::count_if(ops, is_backward) > 1 ? GradientShards::Passes::in_turn : GradientShards::Passes::one;
}

// Moments that this rank keeps, and what updates take in turn.
struct OptimizerBytes {
  size_t moments = 0;
  size_t scratch = 0;
};

OptimizerBytes optimizer_bytes(const TrainConfig& config, const ParameterStore& store, const OptimizerShards& shards) {
  OptimizerBytes bytes;
  for (const Parameter* parameter : store.parameters()) {
    if (!is_trained(parameter->placement) || !shards.keeps(*parameter)) continue;
    bytes.moments += moment_bytes(*parameter, config);
    bytes.scratch = std::max(bytes.scratch, update_scratch_bytes(*parameter, config));
  }
  return bytes;
}

// What a save in the background copies: values and moments that this rank saves.
size_t saved_bytes(const RunConfig& config, Model& model, const OptimizerShards& shards, const PipelineRoutes& routes,
                   const Grid& grid, int rank) {
  size_t bytes = 0;
  for (const auto& stage : model.stages()) {
    stage->each_parameter([&](const Parameter& parameter) {
      if (parameter.placement == Placement::fixed) return;
      if (!shards.saves(parameter, is_first_holder(parameter, stage->place().index, routes, grid, rank))) return;
      bytes += (1 + parameter.copies.size()) * parameter.value.bytes();
      bytes += moment_bytes(parameter, config.train);
    });
  }
  return bytes;
}

// The model of a rank without its memory.
struct DryModel {
  DryModel(const RunConfig& config, const Grid& grid, const PipelineRoutes& routes, int rank)
      : model(config.model, routes.stages_of(grid.stage(rank)),
              place_experts(config.model, config.parallel, grid.expert), grid.expert_rank(rank),
              adapter_options(config)),
        shards(model, routes, grid, rank, config.parallel.shard_optimizer),
        gradient_shards(shards, config.parallel.shard_gradients) {
    for (const auto& stage : model.stages()) {
      stage->each_parameter([this](Parameter& parameter) {
        store.add(parameter, /*slice=*/0, gradient_shards.drops(parameter) ? GradMemory::lent : GradMemory::own);
      });
    }
    store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/true);
    gradient_shards.allocate(model, /*dry_run=*/true);
  }

  Model model;
  OptimizerShards shards;
  GradientShards gradient_shards;
  ParameterStore store;
};

// Values and moments of a rank, or what a partner keeps of them: experts, and moments that are nowhere else.
size_t state_bytes(const RunConfig& config, const DryModel& dry, bool for_partner) {
  size_t bytes = 0;
  for (const Parameter* parameter : dry.store.parameters()) {
    const bool is_whole = !for_partner || parameter->placement == Placement::expert;
    if (parameter->placement == Placement::fixed) continue;
    if (is_whole) bytes += parameter->value.bytes();
    const bool keeps = is_whole ? dry.shards.keeps(*parameter) : dry.shards.keeps_alone(*parameter);
    if (keeps) bytes += moment_bytes(*parameter, config.train);
  }
  return bytes;
}

// Two states, each of this rank and of its partner, and what is on its way to the other partner.
size_t partner_copy_bytes(const RunConfig& config, const DryModel& own, const DryModel& partner) {
  return 2 * (state_bytes(config, own, false) + state_bytes(config, partner, true)) + state_bytes(config, own, true);
}

// Gradients of experts of other ranks of the host, of which this one computes rows, and what arrives of its own experts. A cut
// uses up what a rank has too much or too little, so that a layer has hardly more of them.
size_t guest_bytes(const RunConfig& config, DryModel& dry, const Grid& grid) {
  constexpr size_t kGuestsOfLayer = 2;
  constexpr size_t kWeightsOfExpert = 2;  // the larger one is at most twice the other
  if (config.exchange.balance != "host" || grid.expert == 1) return 0;
  size_t bytes = 0;
  for (const int layer : moe_layers_of(config.model)) {
    Stage* const stage = dry.model.stage_with(layer);
    if (stage == nullptr) continue;
    size_t largest = 0;
    stage->block(layer).moe().each_parameter([&](const Parameter& weight) {
      if (weight.placement == Placement::expert) largest = std::max(largest, weight.grad.bytes());
    });
    bytes += 2 * kGuestsOfLayer * kWeightsOfExpert * largest;
  }
  return bytes;
}

void plan_on(std::unique_ptr<Transport> transport, const RunConfig& config, const Topology& topology, int rank,
             int ranks_of_process, MemoryPlan& plan) {
  const int num_ranks = topology.num_ranks();
  const Grid grid =
      Grid::make(num_ranks, static_cast<int>(config.parallel.pipeline), static_cast<int>(config.parallel.expert));
  const Program program = program_of(config);
  const PipelineRoutes routes = pipeline_routes(program.routes, config.parallel);
  DryModel dry(config, grid, routes, rank);
  Model& model = dry.model;
  ParameterStore& store = dry.store;

  const Communicator alone(std::move(transport), "dry run");
  Lane lane(0, alone.duplicate("expert"), alone.duplicate("data"));
  ExchangeBytes exchange_bytes;
  const auto exchange =
      make_dry_exchange(grid.expert_rank(rank), reads_in_place(config, topology, grid), exchange_bytes);
  const auto kernels = make_null_kernels();
  Arena arena(Arena::Mode::dry_run);
  Arena work(Arena::Mode::dry_run);
  const bool takes_turns = !may_read_in_place(config, grid);
  if (takes_turns) arena.set_work(&work);
  const Recompute recompute = recompute_of(config.train);
  LaneContext ctx = {{*kernels, arena, DType::f32, recompute}, lane, *exchange, combine_mode(config.exchange)};
  if (has_adapters(config) && config.adapter.dropout > 0.0) {
    ctx.dropout = dropout_rows(arena, {}, largest_batch(config, grid.data) * config.data.sequence_length);
  }
  const Concurrency concurrency =
      concurrency_of(program, recompute.every_layer > 0)[static_cast<size_t>(grid.stage(rank))];
  for (const auto& stage : model.stages()) {
    Task<void> pass =
        dry_pass(*stage, ctx, tokens_of(largest_batch(config, grid.data), config.data.sequence_length),
                 config.model.hidden_size, concurrency.defers ? Stage::Weights::later : Stage::Weights::at_once);
    Engine().run(lane, pass);
  }

  const OptimizerBytes optimizer = optimizer_bytes(config.train, store, dry.shards);
  plan.lines = {{"parameters", in_huge_pages(store.value_bytes())},
                {"gradients", in_huge_pages(store.grad_bytes()) + in_huge_pages(dry.gradient_shards.shard_bytes())},
                {"optimizer moments", in_huge_pages(optimizer.moments)}};
  if (const size_t bytes = dry.gradient_shards.most_pass_bytes(model, passes_of(program, grid.stage(rank)))) {
    plan.lines.push_back({"gradients of passes", in_huge_pages(bytes)});
  }
  if (optimizer.scratch > 0) plan.lines.push_back({"optimizer updates", optimizer.scratch});
  if (store.fixed_bytes() > 0) plan.lines.insert(plan.lines.begin(), {"fixed weights", store.fixed_bytes()});
  if (config.checkpoint.async) {
    plan.lines.push_back({"checkpoint copy", saved_bytes(config, model, dry.shards, routes, grid, rank)});
  }
  if (config.checkpoint.partner_copies > 0 && config.recover == "survivors" && num_ranks > 1) {
    const DryModel partner(config, grid, routes, partner_before(topology, rank));
    plan.lines.push_back({"partner copies", partner_copy_bytes(config, dry, partner)});
  }
  if (config.parallel.rebalance != 0 && grid.expert > 1) {
    if (const size_t bytes = moving_bytes(config, model, store); bytes > 0) {
      plan.lines.push_back({"moving experts", bytes});
    }
  }
  if (const size_t guests = guest_bytes(config, dry, grid); guests > 0) {
    plan.lines.push_back({"guest gradients", guests});
  }
  // MPI reduces into a copy of what it is given.
  if (num_ranks > 1) plan.lines.push_back({"gradient reduction", reduced_bytes(config, model, store, grid, routes)});
  plan.lines.push_back({"BLAS and MPI", kLibraryBytes / static_cast<size_t>(ranks_of_process)});
  if (const size_t onednn = onednn_bytes(config.compute); onednn > 0) plan.lines.push_back({"oneDNN", onednn});
  if (const size_t packed = packed_bytes(config, store); packed > 0) plan.lines.push_back({"packed weights", packed});
  const int64_t tokens = largest_batch(config, grid.data) * config.data.sequence_length;
  if (const size_t operands = operand_bytes(config, store, tokens); operands > 0) {
    plan.lines.push_back({"operands of products", operands});
  }
  plan.num_lanes = concurrency.lanes;
  const auto lanes = static_cast<size_t>(plan.num_lanes);
  plan.num_works = takes_turns ? concurrency.works : 0;
  plan.lane_bytes = arena.peak_bytes();
  plan.work_bytes = work.peak_bytes();
  std::map<std::string, size_t> activations;
  for (const auto& [label, bytes] : arena.peak_table()) activations[label] += lanes * bytes;
  for (const auto& [label, bytes] : work.peak_table())
    activations[label] += static_cast<size_t>(plan.num_works) * bytes;
  for (const auto& [label, bytes] : activations) plan.lines.push_back({kActivations + label, bytes});
  if (program.num_stages > 1) {
    const size_t bytes = static_cast<size_t>(tokens * config.model.hidden_size) * size_of(DType::f32);
    plan.lines.push_back({"rows between stages", 2 * lanes * bytes});
  }
  plan.lines.push_back({"exchange", static_cast<size_t>(concurrency.passes) * exchange_bytes.peak});
}

}  // namespace

size_t MemoryPlan::total_bytes() const {
  return std::accumulate(lines.begin(), lines.end(), size_t{0},
                         [](size_t sum, const MemoryLine& line) { return sum + line.bytes; });
}

std::string MemoryPlan::table() const {
  std::string text;
  for (const MemoryLine& line : lines) {
    text += fmt::format("  {:<28} {:>10.1f} MiB\n", line.what, static_cast<double>(line.bytes) / kMiB);
  }
  return text + fmt::format("  {:<28} {:>10.1f} MiB\n", "total", static_cast<double>(total_bytes()) / kMiB);
}

std::string MemoryPlan::line() const {
  std::vector<MemoryLine> parts;
  for (const MemoryLine& one : lines) {
    if (!one.what.starts_with(kActivations)) parts.push_back(one);
  }
  parts.push_back({"activations", activation_bytes()});
  std::ranges::stable_sort(parts, std::ranges::greater(), &MemoryLine::bytes);
  constexpr size_t kMostParts = 3;
  std::string text;
  for (size_t i = 0; i < std::min(kMostParts, parts.size()); ++i) {
    text += fmt::format("{}{} {:.1f}", i == 0 ? "" : ", ", parts[i].what, static_cast<double>(parts[i].bytes) / kMiB);
  }
  return fmt::format("{:.1f} MiB ({})", static_cast<double>(total_bytes()) / kMiB, text);
}

// The last part of a range is as large as any.
int64_t largest_batch(const RunConfig& config, int data) {
  const int64_t micro_batches = config.train.micro_batches;
  const SequenceRange global = part_of({0, config.train.batch}, micro_batches - 1, micro_batches);
  return part_of(global, data - 1, data).count;
}

MemoryPlan plan_memory(const RunConfig& config, const Topology& topology, int rank, int ranks_of_process) {
  MemoryPlan plan;
  run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
    plan_on(std::move(transport), config, topology, rank, ranks_of_process, plan);
  });
  return plan;
}

WorkerOptions training_options(const RunConfig& config, const Communicator& world) {
  const MemoryPlan plan = plan_memory(config, discover_topology(world), world.rank());
  const Program program = program_of(config);
  return {.model = config.model,
          .parallel = config.parallel,
          .exchange = config.exchange,
          .compute = config.compute,
          .routes = pipeline_routes(program.routes, config.parallel),
          .with_grad = true,
          .adapter = adapter_options(config),
          .recompute = recompute_of(config.train),
          .max_tokens = largest_batch(config, world.size() / static_cast<int>(config.parallel.pipeline)) *
                        config.data.sequence_length,
          .activation_bytes = plan.lane_bytes,
          .work_bytes = plan.work_bytes,
          .num_lanes = most_lanes(concurrency_of(program, /*recomputes=*/false)),
          .num_lanes_here = plan.num_lanes,
          .num_works = plan.num_works};
}

namespace {

using WeightShapes = std::map<std::string, std::vector<int64_t>>;

WeightShapes shapes_of(const RunConfig& config) {
  Model model(config.model, {StagePlace()}, place_experts(config.model, ParallelConfig(), /*num_ranks=*/1),
              /*expert_rank=*/0, adapter_options(config));
  ParameterStore store;
  store.add_all(model);
  WeightShapes shapes;
  for (const Parameter* parameter : store.parameters()) shapes[parameter->name()] = shape_of(parameter->value);
  return shapes;
}

std::string shape_text(const WeightShapes& shapes, const std::string& name) {
  const auto found = shapes.find(name);
  return found == shapes.end() ? "absent" : fmt::format("[{}]", fmt::join(found->second, ","));
}

}  // namespace

void check_stage_shapes(const RunConfig& config) {
  if (config.changes.empty()) return;
  const WeightShapes first = shapes_of(config_at(config, 1));
  for (const int64_t step : first_steps(config)) {
    WeightShapes here = shapes_of(config_at(config, step));
    WeightShapes all = first;
    all.insert(here.begin(), here.end());
    for (const auto& [name, shape] : all) {
      CADRE_CHECK(shape_text(first, name) == shape_text(here, name),
                  fmt::format("from step {} on {} would be {}, was {}", step, name, shape_text(here, name),
                              shape_text(first, name)),
                  "a run keeps the shapes of its weights; [from_step.N] may change what they are trained for");
    }
  }
}

}  // namespace cadre
