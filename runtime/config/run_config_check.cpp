// SPDX-License-Identifier: Apache-2.0
// Which values and combinations of a RunConfig can run.
#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/exchange.hpp"
#include "layers/kernels/product_choice.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/config/step_changes.hpp"

namespace cadre {
namespace {

// The last step before the decay, or of all.
int64_t most_warmup_steps(const TrainConfig& train) {
  return std::max<int64_t>(0, train.steps - (train.schedule == "wsd" ? train.decay_steps : 0));
}

void check_train(const TrainConfig& train, ErrorList& errors) {
  errors.collect([&] {
    CADRE_CHECK(train.micro_batches <= train.batch,
                fmt::format("train.micro_batches = {}, allowed: integer in [1, train.batch = {}]", train.micro_batches,
                            train.batch),
                "a micro-batch holds at least one sequence");
  });
  errors.collect([&] {
    CADRE_CHECK(train.min_learning_rate <= train.learning_rate,
                fmt::format("train.min_learning_rate = {}, allowed: number in [0, train.learning_rate = {}]",
                            train.min_learning_rate, train.learning_rate),
                "the schedule decays from learning_rate to min_learning_rate");
  });
  const bool decays_late = train.schedule == "wsd";
  errors.collect([&] {
    CADRE_CHECK(!decays_late || (train.decay_steps >= 1 && train.decay_steps <= train.steps),
                fmt::format("train.decay_steps = {}, allowed: integer in [1, train.steps = {}]", train.decay_steps,
                            train.steps),
                "schedule wsd lowers the learning rate in the last decay_steps steps");
  });
  const int64_t most_warmup = most_warmup_steps(train);
  errors.collect([&] {
    CADRE_CHECK(train.warmup_steps <= most_warmup,
                fmt::format("train.warmup_steps = {}, allowed: integer in [0, {}]", train.warmup_steps, most_warmup),
                "warm-up must end before the last step, and with wsd before the decay");
  });
}

void check_at(const RunConfig& config, int64_t step, int num_ranks) {
  RunConfig now = config_at(config, step);
  now.changes.clear();
  try {
    check(now, num_ranks);
  } catch (const Error& error) {
    if (step == 1) throw;
    throw Error(error.kind(), fmt::format("from step {} on: {}", step, error.text()), error.hint());
  }
}

void check_plugin(const RunConfig& config) {
  const SelectOptions& select = config.model.router.select;
  const bool exchanges = config.exchange.strategy == kPluginStrategy;
  CADRE_CHECK(!exchanges || !select.plugin.empty(),
              "model.plugin = \"\" with exchange.strategy = plugin, allowed: a path",
              "a shared object with an exchange");
  CADRE_CHECK(select.plugin.empty() || exchanges || select.rule == SelectRule::plugin,
              fmt::format("model.plugin = {} is not used", select.plugin),
              "model.router=plugin takes its router, exchange.strategy=plugin its exchange");
}

// Whether something in the model wants to know the task of a token.
bool asks_for_tasks(const ModelConfig& model) {
  const RouterOptions& router = model.router;
  const bool prefers = !router.bias.expert_task.empty() && (router.bias.task > 0.0 || router.bias.history);
  const auto of_task = [](const ExpertCondition& condition) { return condition.kind == ExpertCondition::Kind::task; };
  return prefers || !router.select.task_top_k.empty() || std::ranges::any_of(router.eligibility.conditions, of_task);
}

void check_tasks(const RunConfig& config) {
  task_options(config.task);
  const bool has_tasks = std::ranges::any_of(mixture_entries(config.data),
                                             [](const MixtureEntry& entry) { return entry.task != kNoTask; });
  CADRE_CHECK(
      (!config.task.recognise && !has_tasks) || asks_for_tasks(config.model),
      fmt::format("{}, but the model uses no tasks", has_tasks ? "data.mixture names tasks" : "task.recognise = true"),
      fmt::format("set model.expert_tasks={} and model.task_bias={}{}", kExpertTasks, kTaskBias,
                  has_tasks ? ", or use NONE for each task" : ""));
}

void check_paths_given(const RunConfig& config, ErrorList& errors) {
  errors.collect(
      [&] { CADRE_CHECK(!config.out.empty(), "out = \"\", allowed: a path", "folder for checkpoints and logs"); });
  errors.collect([&] {
    CADRE_CHECK(!config.data.path.empty() || !config.data.mixture.empty(), "data.path = \"\", allowed: a path",
                "a text file, a folder of them, or an llm.c token file");
  });
  errors.collect([&] {
    CADRE_CHECK(!config.data.tokenizer.empty(), "data.tokenizer = \"\", allowed: bytes | a path",
                "a tokenizer.json, a tokenizer.model or a folder with one");
  });
  errors.collect([&] {
    CADRE_CHECK(!config.checkpoint.resume.empty(), "checkpoint.resume = \"\", allowed: auto | never | a path",
                "auto starts a new run if there is no checkpoint");
  });
}

void check_data_fits(const RunConfig& config) {
  CADRE_CHECK(config.data.sequence_length <= config.model.max_position_embeddings,
              fmt::format("data.sequence_length = {}, allowed: integer in [1, model.max_position_embeddings = {}]",
                          config.data.sequence_length, config.model.max_position_embeddings),
              "raise max_position_embeddings or shorten the sequences");
}

void check_row_bits(const RunConfig& config) {
  if (config.compute.row_bits == "fast") return;
  CADRE_CHECK(config.compute.device == "cpu",
              "compute.row_bits = independent with compute.device = cuda, allowed: fast",
              "products of devices are fast ones");
  CADRE_CHECK(config.exchange.combine == "slot_order",
              fmt::format("compute.row_bits = independent with exchange.combine = {}, allowed: slot_order",
                          config.exchange.combine),
              "sums at the ranks of experts depend on where these lie");
}

void check_recompute(const RunConfig& config) {
  const Recompute recompute = recompute_of(config.train);
  CADRE_CHECK(!recompute.mla_up || has_latent_attention(config.model),
              "train.recompute = mla_up, allowed: the others for a model without latent attention",
              "attention computes all of attention again");
}

void check_routing(const RunConfig& config) {
  const bool uses = !config.train.replay.empty() || !config.log.routing.empty();
  CADRE_CHECK(!uses || config.model.n_routed_experts > 0,
              "train.replay and log.routing, allowed: nothing for a model without experts", "no router chooses here");
  CADRE_CHECK(config.log.routing.empty() || recompute_of(config.train).every_layer == 0,
              fmt::format("log.routing with train.recompute = {}, allowed: none | activations | mla_up | attention",
                          config.train.recompute),
              "what is computed once more is not kept to be written");
  CADRE_CHECK(config.train.replay.empty() || config.train.replay != config.log.routing,
              "train.replay and log.routing name one folder", "a run would overwrite what it replays");
}

void check_balance(const RunConfig& config) {
  if (config.exchange.balance == "none") return;
  const auto refuse = [](const char* with, const char* hint) {
    throw Error(ErrorKind::input, fmt::format("exchange.balance = host with {}, allowed: none", with), hint);
  };
  if (config.compute.device != "cpu") refuse("compute.device = cuda", "ranks read weights in memory of their host");
  if (config.model.n_routed_experts == 0) refuse("a model without experts", "model.n_routed_experts is 0");
  if (config.model.expert_kinds == ExpertKinds::projections) {
    refuse("model.expert_kinds = projections", "only rows of whole experts are cut");
  }
  if (has_adapters(config)) refuse("adapter.rank", "the weights below adapters lie in memory of one rank");
  if (config.parallel.redundant_experts > 0) {
    refuse("parallel.redundant_experts", "rows of a busy expert are cut over its host without copies");
  }
}

void check_shards(const RunConfig& config, int num_ranks) {
  if (!config.parallel.shard_gradients) return;
  const auto refuse = [](const std::string& with, const char* hint) {
    throw Error(ErrorKind::input, fmt::format("parallel.shard_gradients = true with {}, allowed: false", with), hint);
  };
  if (!config.parallel.shard_optimizer) {
    refuse("parallel.shard_optimizer = false", "a rank keeps the gradients of which it keeps the moments");
  }
  if (config.compute.device != "cpu") refuse("compute.device = cuda", "sums of a device's gradients go to all ranks");
  if (config.parallel.schedule == "dualpipe") {
    refuse("parallel.schedule = dualpipe", "rows that hold one stage begin its sums in different orders; dualpipev");
  }
  const int64_t row = num_ranks / config.parallel.pipeline;
  const bool shares_experts = config.parallel.expert != 0 && row > config.parallel.expert;
  if (shares_experts && config.exchange.balance == "host") {
    refuse("exchange.balance = host and parallel.expert below the ranks of a row",
           "guests add to gradients of experts behind all passes");
  }
  if (shares_experts && config.parallel.rebalance != 0) {
    refuse("parallel.rebalance and parallel.expert below the ranks of a row", "gradients move with their experts");
  }
}

void check_evaluation(const RunConfig& config) {
  CADRE_CHECK(
      config.train.eval_every == 0 || config.data.validation_fraction > 0 || !config.data.validation.empty(),
      fmt::format("train.eval_every = {}, allowed: 0 with data.validation_fraction = 0", config.train.eval_every),
      "hold out some data, for example data.validation_fraction=0.05");
  CADRE_CHECK(config.train.patience == 0 || config.train.eval_every > 0,
              fmt::format("train.patience = {} with train.eval_every = 0, allowed: 0", config.train.patience),
              "patience counts evaluations: set train.eval_every");
}

void check_parallel(const RunConfig& config, int num_ranks) {
  const int64_t pipeline = config.parallel.pipeline;
  CADRE_CHECK(num_ranks % pipeline == 0,
              fmt::format("parallel.pipeline = {}, allowed: a divisor of the {} ranks", pipeline, num_ranks),
              "every stage has the same number of ranks");
  const int64_t row = num_ranks / pipeline;
  CADRE_CHECK(config.parallel.expert == 0 || row % config.parallel.expert == 0,
              fmt::format("parallel.expert = {}, allowed: 0 or a divisor of the {} ranks{}", config.parallel.expert,
                          row, pipeline == 1 ? "" : fmt::format(" of each of {} rows", pipeline)),
              "ranks form groups of this size; each group holds all experts");
  const bool placed = config.parallel.redundant_experts > 0 || !config.parallel.placement.empty();
  const bool moves = config.parallel.rebalance != 0;
  const bool has_one_shape = config.model.n_routed_experts > 0 && (config.model.expert_kinds == ExpertKinds::same ||
                                                                   config.model.expert_kinds == ExpertKinds::mixture);
  CADRE_CHECK(!moves || has_one_shape,
              "parallel.rebalance, allowed: 0 for a model without experts and with model.expert_kinds = typed | "
              "projections",
              "an expert that moves takes the memory of another one, which must be of its shape");
  CADRE_CHECK(!placed || config.model.n_routed_experts > 0,
              "parallel.redundant_experts and parallel.placement, allowed: 0 and \"\" for a model without experts",
              "model.n_routed_experts is 0");
}

}  // namespace

void check(const RunConfig& config, int num_ranks) {
  if (!config.changes.empty()) {
    for (const int64_t step : first_steps(config)) check_at(config, step, num_ranks);
    const int64_t last = config.changes.back().step;
    CADRE_CHECK(last <= config.train.steps,
                fmt::format("from_step.{}, allowed: integer in [1, train.steps = {}]", last, config.train.steps),
                "steps count from 1");
    return;
  }
  RunConfig copy = config;
  ErrorList errors;
  for (const Section& section : sections_of(copy)) {
    for (const Field& field : section.fields) {
      errors.collect([&] { check_ranges(std::span(&field, 1), key_prefix(section)); });
    }
  }
  errors.raise();
  errors.collect([&] { check(config.model); });
  errors.collect([&] {
    if (config.compute.products != "auto") ProductChoice::parse(config.compute.products, "compute.products");
  });
  errors.collect([&] { check_plugin(config); });
  check_train(config.train, errors);
  errors.collect([&] { train_stages(config.train); });
  errors.collect([&] { check_recompute(config); });
  errors.collect([&] { check_tasks(config); });
  errors.collect([&] { check_adapters(config); });
  check_paths_given(config, errors);
  errors.collect([&] { check_data_fits(config); });
  errors.collect([&] { check_evaluation(config); });
  errors.collect([&] {
    CADRE_CHECK(config.exchange.gradients == "fp32" || config.compute.device == "cpu",
                fmt::format("exchange.gradients = {}, allowed: fp32 with compute.device = {}",
                            config.exchange.gradients, config.compute.device),
                "sums of a device's gradients are fp32");
  });
  errors.collect([&] { check_parallel(config, num_ranks); });
  errors.collect([&] { check_balance(config); });
  errors.collect([&] { check_shards(config, num_ranks); });
  errors.collect([&] { check_routing(config); });
  errors.collect([&] { check_row_bits(config); });
  errors.raise();
}

std::string shorten_warmup(RunConfig& config) {
  TrainConfig& train = config.train;
  const int64_t most = most_warmup_steps(train);
  if (train.warmup_steps <= most) return "";
  const int64_t asked = std::exchange(train.warmup_steps, (most + 9) / 10);
  return fmt::format("train.warmup_steps = {} is longer than the {} steps before the end: shortened to {}", asked, most,
                     train.warmup_steps);
}

}  // namespace cadre
