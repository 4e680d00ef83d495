// SPDX-License-Identifier: Apache-2.0
#include "layers/model/router_options.hpp"

#include <algorithm>

#include "comm/base/check.hpp"
#include "layers/router/select.hpp"

namespace cadre {
namespace {

int num_tasks(const ModelConfig& config) {
  const std::vector<int32_t>& tasks = config.router.bias.expert_task;
  return tasks.empty() ? 0 : std::ranges::max(tasks) + 1;
}

// greedy leaves groups alone, as the published models do.
GroupLimit group_limit(const ModelConfig& config) {
  const bool is_used =
      config.topk_method != TopkMethod::greedy || config.router.select.rule == SelectRule::hierarchical;
  if (!is_used) return {};
  return {.groups = static_cast<int>(config.n_group),
          .kept = static_cast<int>(config.topk_group),
          .summed = config.topk_method == TopkMethod::noaux_tc ? 2 : 1};
}

bool learns_capacity(const CapacityOptions& capacity) {
  return (capacity.factor > 0.0 || capacity.tokens > 0) && capacity.kind != CapacityKind::fixed;
}

// Devices a token may visit.
int64_t devices_a_token(const ModelConfig& config) {
  const GroupLimit& nodes = config.router.eligibility.nodes;
  return nodes.limits() ? nodes.kept : std::min<int64_t>(config.router.losses.devices, config.num_experts_per_tok);
}

void check_list(const ModelConfig& config, const char* key, const std::vector<int32_t>& numbers, int64_t least,
                int64_t most) {
  const auto allowed = [=](int32_t number) { return number >= least && number <= most; };
  CADRE_CHECK(std::ranges::all_of(numbers, allowed),
              fmt::format("model.{} = \"{}\", allowed: {}", key, key_text(config, key), list_form(least, most)),
              "numbers with commas between them, nothing else");
}

void check_lists(const ModelConfig& c) {
  const RouterOptions& router = c.router;
  const auto num_experts = static_cast<size_t>(c.n_routed_experts);
  CADRE_CHECK(router.bias.expert_task.empty() || router.bias.expert_task.size() == num_experts,
              fmt::format("model.expert_tasks = \"{}\", allowed: one number for each of n_routed_experts = {}",
                          key_text(c, "expert_tasks"), num_experts),
              "-1 for an expert without a task");
  check_list(c, "task_top_k", router.select.task_top_k, 1, c.num_experts_per_tok);
  check_list(c, "dead_experts", router.dead_experts, 0, c.n_routed_experts - 1);
  for (const ExpertCondition& condition : router.eligibility.conditions) {
    CADRE_CHECK(condition.expert < c.n_routed_experts,
                fmt::format("model.expert_conditions = \"{}\" names expert {}, allowed: integer in [0, {}]",
                            key_text(c, "expert_conditions"), condition.expert, c.n_routed_experts - 1),
                "experts count from 0");
  }
}

// The published gate of V2 either divides by the sum or scales; that of V3 does both.
double scale_of(const ModelConfig& config) {
  return config.model_type == "deepseek_v2" && renormalises(config) ? 1.0 : config.routed_scaling_factor;
}

}  // namespace

ExpertOptions expert_options(const ModelConfig& config) {
  return {.ffn = {.hidden = config.hidden_size,
                  .width = config.moe_intermediate_size,
                  .activation = activation_named(config.hidden_act),
                  .gated = config.ffn_gate},
          .kinds = config.expert_kinds,
          .inner_experts = static_cast<int>(config.inner_experts),
          .inner_top_k = static_cast<int>(config.inner_experts_per_tok)};
}

ExpertWeights routed_expert_weights(const ModelConfig& config) {
  const ExpertOptions options = expert_options(config);
  ExpertWeights sum;
  for (int id = 0; id < config.n_routed_experts; ++id) {
    const ExpertWeights one = weights_of_expert(options, id);
    sum.total += one.total;
    sum.active += one.active;
  }
  return sum;
}

RouterOptions router_options(const ModelConfig& config) {
  const bool by_kind = config.expert_kinds == ExpertKinds::projections;
  RouterOptions router = config.router;
  router.hidden = config.hidden_size;
  router.num_experts = static_cast<int>(config.n_routed_experts);
  router.top_k = static_cast<int>(config.num_experts_per_tok);
  router.score = config.scoring_func;
  router.groups = group_limit(config);
  router.selection_bias = config.topk_method == TopkMethod::noaux_tc;
  router.init_std = config.initializer_range;
  router.weights.renormalise = renormalises(config);
  router.weights.scale = scale_of(config);
  if (router.select.rule == SelectRule::hierarchical && renormalises(config)) {
    router.weights.groups = router.groups.groups;
  }
  router.weights.parts = by_kind ? 3 : 1;
  if (router.scorer.two_level) router.scorer.coarse_groups = static_cast<int>(config.n_group);
  router.bias.num_tasks = num_tasks(config);
  router.losses.balance = config.aux_loss_alpha;
  router.losses.devices_a_token = static_cast<int>(devices_a_token(config));
  // In a dense mixture num_experts_per_tok is n_routed_experts.
  if (router.select.rule == SelectRule::dense) router.select.rule = SelectRule::token_choice;
  if (by_kind) router.select.rule = SelectRule::by_kind;
  return router;
}

namespace {

// Experts that are single projections: three kinds, which a token needs of each.
void check_projections(const ModelConfig& c) {
  if (c.expert_kinds != ExpertKinds::projections) return;
  CADRE_CHECK(is_gated(c), "model.ffn_gate = false with expert_kinds = projections, allowed: true",
              "a gate projection multiplies an up projection");
  CADRE_CHECK(
      c.n_routed_experts % 3 == 0 && c.num_experts_per_tok % 3 == 0,
      fmt::format("model.n_routed_experts = {}, num_experts_per_tok = {} with expert_kinds = projections, allowed: "
                  "multiples of 3",
                  c.n_routed_experts, c.num_experts_per_tok),
      "gate, up and down projections take turns, and a token visits equally many of each");
  const std::pair<const char*, bool> refused[] = {
      {"router (other than token_choice)", c.router.select.rule != SelectRule::token_choice},
      {"topk_group < n_group", c.topk_method != TopkMethod::greedy && c.topk_group < c.n_group},
      {"node_limit < node_count", c.router.eligibility.nodes.limits()},
      {"router_top_p < 1", c.router.select.top_p < 1.0},
      {"task_top_k", !c.router.select.task_top_k.empty()},
      {"seq_aux", c.router.losses.by_sequence},
      {"diversity_loss_weight", c.router.losses.diversity > 0.0}};
  for (const auto& [what, is_set] : refused) {
    CADRE_CHECK(!is_set, fmt::format("model.{} with expert_kinds = projections, allowed: its default", what),
                "it would choose, count or compare projections of different kinds together");
  }
}

std::unique_ptr<Selector> selector_of(const ModelConfig& config) {
  SelectOptions options = router_options(config).select;
  options.num_experts = static_cast<int>(config.n_routed_experts);
  options.top_k = static_cast<int>(config.num_experts_per_tok);
  return make_selector(options);
}

// Loads it, so that a plugin that cannot be used is found before anything else is done.
void check_plugin(const ModelConfig& c) {
  if (c.router.select.rule != SelectRule::plugin) return;
  CADRE_CHECK(!c.router.select.plugin.empty(), "model.plugin = \"\" with router = plugin, allowed: a path",
              "a shared object with a router; launch/examples/own_router.cpp is one");
  static_cast<void>(selector_of(c));
}

}  // namespace

std::string router_plugin(const ModelConfig& config) {
  const SelectOptions& select = config.router.select;
  return select.rule == SelectRule::plugin ? select.plugin : "";
}

void check_router(const ModelConfig& c) {
  const SelectRule rule = c.router.select.rule;
  const GroupLimit& nodes = c.router.eligibility.nodes;
  const CapacityOptions& capacity = c.router.capacity;
  const LossOptions& losses = c.router.losses;
  check_lists(c);
  check_projections(c);
  check_plugin(c);
  CADRE_CHECK(c.inner_experts_per_tok <= c.inner_experts,
              fmt::format("model.inner_experts_per_tok = {}, allowed: integer in [1, inner_experts = {}]",
                          c.inner_experts_per_tok, c.inner_experts),
              "a token cannot visit an inner expert twice");
  CADRE_CHECK(
      c.expert_kinds != ExpertKinds::typed ||
          (is_gated(c) && c.hidden_act == "silu" && c.moe_intermediate_size % 2 == 0),
      fmt::format("model.expert_kinds = typed with hidden_act = {} and moe_intermediate_size = {}, allowed: silu, even",
                  c.hidden_act, c.moe_intermediate_size),
      "gate experts are SwiGLU, down experts have half the width");
  CADRE_CHECK(rule != SelectRule::dense || c.num_experts_per_tok == c.n_routed_experts,
              fmt::format("model.num_experts_per_tok = {} with router = dense, allowed: n_routed_experts = {}",
                          c.num_experts_per_tok, c.n_routed_experts),
              "in a dense mixture every token visits every expert");
  CADRE_CHECK(rule != SelectRule::hierarchical || c.num_experts_per_tok % c.topk_group == 0,
              fmt::format("model.num_experts_per_tok = {} with router = hierarchical, allowed: a multiple of "
                          "topk_group = {}",
                          c.num_experts_per_tok, c.topk_group),
              "each of those groups gives equally many experts");
  CADRE_CHECK(c.router.weights.gate != GateKind::binary || rule != SelectRule::hierarchical,
              "model.router_gate = binary with router = hierarchical, allowed: score",
              "its weights are products of two scores");
  CADRE_CHECK(
      !c.router.scorer.two_level || (c.scoring_func == ScoreFunction::softmax && c.n_group > 1),
      fmt::format("model.router_two_level = true with scoring_func = {} and n_group = {}, allowed: softmax, more "
                  "than one group",
                  key_text(c, "scoring_func"), c.n_group),
      "the score of an expert is softmax(group) times softmax(expert within its group)");
  CADRE_CHECK(nodes.groups <= c.n_routed_experts && nodes.kept <= nodes.groups,
              fmt::format("model.node_count = {} with node_limit = {}, allowed: node_limit <= node_count <= "
                          "n_routed_experts = {}",
                          nodes.groups, nodes.kept, c.n_routed_experts),
              "a token's experts are on node_limit of node_count hosts");
  CADRE_CHECK(losses.devices <= c.n_routed_experts,
              fmt::format("model.balance_devices = {}, allowed: integer in [1, n_routed_experts = {}]", losses.devices,
                          c.n_routed_experts),
              "every device has an expert");
  const std::pair<const char*, double> of_devices[] = {{"device_loss_weight", losses.device},
                                                       {"communication_loss_weight", losses.communication},
                                                       {"device_variance_weight", losses.device_variance}};
  for (const auto& [name, weight] : of_devices) {
    CADRE_CHECK(
        weight == 0.0 || losses.devices > 1,
        fmt::format("model.{} = {} with balance_devices = 1, allowed: balance_devices in [2, n_routed_experts = "
                    "{}]",
                    name, weight, c.n_routed_experts),
        "one device is always balanced; balance_devices is usually the expert-parallel size");
  }
  CADRE_CHECK(capacity.factor == 0.0 || capacity.tokens == 0,
              fmt::format("model.expert_capacity = {} with capacity_factor = {}, allowed: one of them is 0",
                          capacity.tokens, capacity.factor),
              "two answers to how many tokens an expert takes");
  CADRE_CHECK(capacity.eval_factor == 0.0 || capacity.eval_tokens == 0,
              fmt::format("model.eval_expert_capacity = {} with eval_capacity_factor = {}, allowed: one of them is 0",
                          capacity.eval_tokens, capacity.eval_factor),
              "two answers to how many tokens an expert takes");
  CADRE_CHECK(losses.load == 0.0 || (c.router.scorer.noise && c.num_experts_per_tok < c.n_routed_experts),
              fmt::format("model.load_loss_weight = {} with router_noise = {} and num_experts_per_tok = {}, allowed: "
                          "router_noise = true and fewer than n_routed_experts = {}",
                          losses.load, c.router.scorer.noise, c.num_experts_per_tok, c.n_routed_experts),
              "the expected load is that of noisy top-k");
}

int64_t slots_per_token(const ModelConfig& config) { return selector_of(config)->num_slots(); }

int64_t widest_row(const ModelConfig& config) {
  const bool narrow = config.expert_kinds == ExpertKinds::projections;
  return narrow ? std::max(config.hidden_size, config.moe_intermediate_size) : config.hidden_size;
}

int64_t router_weights(const ModelConfig& config) {
  const ScoreOptions& scorer = config.router.scorer;
  int64_t count = 0;
  int64_t width = config.hidden_size;
  for (const int64_t next : scorer.hidden_sizes) {
    count += width * next;
    width = next;
  }
  count += width * config.n_routed_experts;
  if (scorer.two_level) count += config.n_group * config.hidden_size;
  if (scorer.noise) count += config.n_routed_experts * config.hidden_size;
  return count;
}

int64_t router_buffers(const ModelConfig& config) {
  int64_t rows = config.topk_method == TopkMethod::noaux_tc ? 1 : 0;
  if (learns_capacity(config.router.capacity)) ++rows;
  if (config.router.bias.history) rows += 3 * (num_tasks(config) + 1);
  return rows * config.n_routed_experts;
}

}  // namespace cadre
