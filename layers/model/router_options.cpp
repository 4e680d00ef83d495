// SPDX-License-Identifier: Apache-2.0
#include "layers/model/router_options.hpp"

#include <algorithm>
#include <limits>
#include <string_view>

#include "comm/base/check.hpp"
#include "layers/model/number_list.hpp"

namespace cadre {
namespace {

// "6:task=2": expert, what is looked at, and the value that it is compared with.
std::vector<ExpertCondition> conditions_of(const ModelConfig& config) {
  using Kind = ExpertCondition::Kind;
  constexpr std::pair<std::string_view, Kind> kKinds[] = {
      {"task=", Kind::task}, {"position<", Kind::position_below}, {"position>=", Kind::position_from}};
  const std::string& text = config.routing.expert_conditions;
  std::vector<ExpertCondition> conditions;
  each_part(text, [&](std::string_view part) {
    const size_t colon = part.find(':');
    int64_t expert = -1;
    const std::string_view rest = colon == std::string_view::npos ? "" : part.substr(colon + 1);
    const auto* kind =
        std::ranges::find_if(kKinds, [rest](const auto& named) { return rest.starts_with(named.first); });
    int64_t value = 0;
    if (!read_number(part.substr(0, colon), expert) || expert < 0 || expert >= config.n_routed_experts ||
        kind == std::end(kKinds) || !read_number(rest.substr(kind->first.size()), value)) {
      refuse_list("expert_conditions", text, "EXPERT:task=N, EXPERT:position<N or EXPERT:position>=N, as 6:task=2");
    }
    conditions.push_back({static_cast<int>(expert), kind->second, value});
  });
  return conditions;
}

constexpr int64_t kAnyNumber = std::numeric_limits<int32_t>::max();

std::vector<int64_t> hidden_sizes(const ModelConfig& config) {
  return numbers_of<int64_t>("router_hidden_sizes", config.routing.router_hidden_sizes, 1, kAnyNumber);
}

}  // namespace

std::vector<int32_t> expert_tasks(const ModelConfig& config) {
  return numbers_of<int32_t>("expert_tasks", config.routing.expert_tasks, -1, 1023);
}

namespace {

int num_tasks(const ModelConfig& config) {
  const std::vector<int32_t> tasks = expert_tasks(config);
  return tasks.empty() ? 0 : std::ranges::max(tasks) + 1;
}

std::vector<int32_t> task_top_k(const ModelConfig& config) {
  return numbers_of<int32_t>("task_top_k", config.routing.task_top_k, 1, config.num_experts_per_tok);
}

std::vector<int> dead_experts(const ModelConfig& config) {
  return numbers_of<int>("dead_experts", config.routing.dead_experts, 0, config.n_routed_experts - 1);
}

// greedy leaves groups alone, as the published models do.
GroupLimit group_limit(const ModelConfig& config) {
  const bool is_used = config.topk_method != "greedy" || config.routing.router == "hierarchical";
  if (!is_used) return {};
  return {.groups = static_cast<int>(config.n_group),
          .kept = static_cast<int>(config.topk_group),
          .summed = config.topk_method == "noaux_tc" ? 2 : 1};
}

SelectRule rule_named(const std::string& name) {
  if (name == "expert_choice") return SelectRule::expert_choice;
  if (name == "hybrid") return SelectRule::hybrid;
  if (name == "sinkhorn") return SelectRule::sinkhorn;
  if (name == "hierarchical") return SelectRule::hierarchical;
  return SelectRule::token_choice;  // also dense, whose num_experts_per_tok is n_routed_experts
}

CapacityKind capacity_kind(const std::string& name) {
  if (name == "dynamic") return CapacityKind::dynamic;
  return name == "learned" ? CapacityKind::learned : CapacityKind::fixed;
}

ExpertKinds kinds_named(const std::string& name) {
  if (name == "mixture") return ExpertKinds::mixture;
  if (name == "projections") return ExpertKinds::projections;
  return name == "typed" ? ExpertKinds::typed : ExpertKinds::same;
}

// "cv2", "variance" or "counts", with "_unbiased" behind it or not.
VarianceForm variance_form(const std::string& name) {
  VarianceForm form;
  if (name.starts_with("variance")) form.kind = VarianceForm::Kind::raw;
  if (name.starts_with("counts")) form.kind = VarianceForm::Kind::counts;
  if (name.ends_with("_unbiased")) form.variance = Variance::unbiased;
  return form;
}

LossOptions loss_options(const ModelConfig& config) {
  const RouterKeys& keys = config.routing;
  const int64_t devices_a_token =
      keys.node_limit < keys.node_count ? keys.node_limit : std::min(keys.balance_devices, config.num_experts_per_tok);
  return {.balance = config.aux_loss_alpha,
          .by_sequence = keys.seq_aux,
          .kl = keys.kl_loss_weight,
          .importance = keys.importance_loss_weight,
          .load = keys.load_loss_weight,
          .expert = keys.expert_loss_weight,
          .device = keys.device_loss_weight,
          .communication = keys.communication_loss_weight,
          .expert_variance = keys.expert_variance_weight,
          .device_variance = keys.device_variance_weight,
          .z = keys.router_z_loss_coef,
          .diversity = keys.diversity_loss_weight,
          .devices = static_cast<int>(keys.balance_devices),
          .devices_a_token = static_cast<int>(devices_a_token),
          .layout = keys.balance_device_layout == "cyclic" ? DeviceLayout::cyclic : DeviceLayout::contiguous,
          .importance_form = variance_form(keys.importance_form),
          .expert_form = variance_form(keys.expert_variance_form),
          .device_form = variance_form(keys.device_variance_form)};
}

bool learns_capacity(const RouterKeys& keys) {
  return (keys.capacity_factor > 0.0 || keys.expert_capacity > 0) && keys.capacity_kind != "fixed";
}

void check_lists(const ModelConfig& c) {
  const auto check_size = [&](const char* key, const std::string& text, size_t size) {
    const auto wanted = static_cast<size_t>(c.n_routed_experts);
    CADRE_CHECK(
        text.empty() || size == wanted,
        fmt::format("model.{} = \"{}\", allowed: one number for each of n_routed_experts = {}", key, text, wanted),
        "-1 for an expert without a task");
  };
  check_size("expert_tasks", c.routing.expert_tasks, expert_tasks(c).size());
  hidden_sizes(c);
  task_top_k(c);
  dead_experts(c);
  conditions_of(c);
}

// The published gate of V2 either divides by the sum or scales; that of V3 does both.
double scale_of(const ModelConfig& config) {
  return config.model_type == "deepseek_v2" && renormalises(config) ? 1.0 : config.routed_scaling_factor;
}

}  // namespace

ExpertOptions expert_options(const ModelConfig& config) {
  const RouterKeys& keys = config.routing;
  return {.ffn = {.hidden = config.hidden_size,
                  .width = config.moe_intermediate_size,
                  .activation = activation_named(config.hidden_act),
                  .gated = config.ffn_gate},
          .kinds = kinds_named(keys.expert_kinds),
          .inner_experts = static_cast<int>(keys.inner_experts),
          .inner_top_k = static_cast<int>(keys.inner_experts_per_tok)};
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
  const RouterKeys& keys = config.routing;
  const GroupLimit groups = group_limit(config);
  return {
      .hidden = config.hidden_size,
      .num_experts = static_cast<int>(config.n_routed_experts),
      .top_k = static_cast<int>(config.num_experts_per_tok),
      .score = config.scoring_func == "sigmoid" ? ScoreFunction::sigmoid : ScoreFunction::softmax,
      .weights = {.renormalise = renormalises(config),
                  .scale = scale_of(config),
                  .gate = keys.router_gate == "binary" ? GateKind::binary : GateKind::score,
                  .groups = keys.router == "hierarchical" && renormalises(config) ? groups.groups : 0,
                  .parts = keys.expert_kinds == "projections" ? 3 : 1},
      .groups = groups,
      .selection_bias = config.topk_method == "noaux_tc",
      .init_std = config.initializer_range,
      .scorer = {.hidden_sizes = hidden_sizes(config),
                 .coarse_groups = keys.router_two_level ? static_cast<int>(config.n_group) : 0,
                 .noise = keys.router_noise,
                 .jitter = keys.router_jitter_noise},
      .bias = {.task = keys.task_bias,
               .expert_task = expert_tasks(config),
               .num_tasks = num_tasks(config),
               .history = keys.expert_history,
               .weighs = keys.combine_weights == "biased"},
      .eligibility = {.nodes = {.groups = static_cast<int>(keys.node_count), .kept = static_cast<int>(keys.node_limit)},
                      .conditions = conditions_of(config)},
      .select = {.rule = keys.expert_kinds == "projections" ? SelectRule::by_kind : rule_named(keys.router),
                 .top_p = keys.router_top_p,
                 .task_top_k = task_top_k(config),
                 .hybrid_load = keys.hybrid_load},
      .capacity = {.factor = keys.capacity_factor,
                   .eval_factor = keys.eval_capacity_factor,
                   .tokens = keys.expert_capacity,
                   .eval_tokens = keys.eval_expert_capacity,
                   .drop = keys.capacity_drop == "position" ? DropPolicy::position : DropPolicy::probability,
                   .kind = capacity_kind(keys.capacity_kind),
                   .rate = keys.capacity_rate,
                   .renormalise = keys.capacity_renormalise},
      .losses = loss_options(config),
      .dead_experts = dead_experts(config)};
}

namespace {

// Experts that are single projections: three kinds, which a token needs of each.
void check_projections(const ModelConfig& c) {
  const RouterKeys& keys = c.routing;
  if (keys.expert_kinds != "projections") return;
  CADRE_CHECK(is_gated(c), "model.ffn_gate = false with expert_kinds = projections, allowed: true",
              "a gate projection multiplies an up projection");
  CADRE_CHECK(
      c.n_routed_experts % 3 == 0 && c.num_experts_per_tok % 3 == 0,
      fmt::format("model.n_routed_experts = {}, num_experts_per_tok = {} with expert_kinds = projections, allowed: "
                  "multiples of 3",
                  c.n_routed_experts, c.num_experts_per_tok),
      "gate, up and down projections take turns, and a token visits equally many of each");
  const std::pair<const char*, bool> refused[] = {
      {"router (other than token_choice)", keys.router != "token_choice"},
      {"topk_group < n_group", c.topk_method != "greedy" && c.topk_group < c.n_group},
      {"node_limit < node_count", keys.node_limit < keys.node_count},
      {"router_top_p < 1", keys.router_top_p < 1.0},
      {"task_top_k", !keys.task_top_k.empty()},
      {"seq_aux", keys.seq_aux},
      {"diversity_loss_weight", keys.diversity_loss_weight > 0.0}};
  for (const auto& [what, is_set] : refused) {
    CADRE_CHECK(!is_set, fmt::format("model.{} with expert_kinds = projections, allowed: its default", what),
                "it would choose, count or compare projections of different kinds together");
  }
}

}  // namespace

void check_router(const ModelConfig& c) {
  const RouterKeys& keys = c.routing;
  check_lists(c);
  check_projections(c);
  CADRE_CHECK(keys.inner_experts_per_tok <= keys.inner_experts,
              fmt::format("model.inner_experts_per_tok = {}, allowed: integer in [1, inner_experts = {}]",
                          keys.inner_experts_per_tok, keys.inner_experts),
              "a token cannot visit an inner expert twice");
  CADRE_CHECK(
      keys.expert_kinds != "typed" || (is_gated(c) && c.hidden_act == "silu" && c.moe_intermediate_size % 2 == 0),
      fmt::format("model.expert_kinds = {} with hidden_act = {} and moe_intermediate_size = {}, allowed: silu, even",
                  keys.expert_kinds, c.hidden_act, c.moe_intermediate_size),
      "gate experts are SwiGLU, down experts have half the width");
  CADRE_CHECK(keys.router != "dense" || c.num_experts_per_tok == c.n_routed_experts,
              fmt::format("model.num_experts_per_tok = {} with router = dense, allowed: n_routed_experts = {}",
                          c.num_experts_per_tok, c.n_routed_experts),
              "in a dense mixture every token visits every expert");
  CADRE_CHECK(keys.router != "hierarchical" || c.num_experts_per_tok % c.topk_group == 0,
              fmt::format("model.num_experts_per_tok = {} with router = hierarchical, allowed: a multiple of "
                          "topk_group = {}",
                          c.num_experts_per_tok, c.topk_group),
              "each of those groups gives equally many experts");
  CADRE_CHECK(keys.router_gate != "binary" || keys.router != "hierarchical",
              "model.router_gate = binary with router = hierarchical, allowed: score",
              "its weights are products of two scores");
  CADRE_CHECK(
      !keys.router_two_level || (c.scoring_func == "softmax" && c.n_group > 1),
      fmt::format("model.router_two_level = true with scoring_func = {} and n_group = {}, allowed: softmax, more "
                  "than one group",
                  c.scoring_func, c.n_group),
      "the score of an expert is softmax(group) times softmax(expert within its group)");
  CADRE_CHECK(keys.node_count <= c.n_routed_experts && keys.node_limit <= keys.node_count,
              fmt::format("model.node_count = {} with node_limit = {}, allowed: node_limit <= node_count <= "
                          "n_routed_experts = {}",
                          keys.node_count, keys.node_limit, c.n_routed_experts),
              "a token's experts are on node_limit of node_count hosts");
  CADRE_CHECK(keys.balance_devices <= c.n_routed_experts,
              fmt::format("model.balance_devices = {}, allowed: integer in [1, n_routed_experts = {}]",
                          keys.balance_devices, c.n_routed_experts),
              "every device has an expert");
  const std::pair<const char*, double> of_devices[] = {{"device_loss_weight", keys.device_loss_weight},
                                                       {"communication_loss_weight", keys.communication_loss_weight},
                                                       {"device_variance_weight", keys.device_variance_weight}};
  for (const auto& [name, weight] : of_devices) {
    CADRE_CHECK(
        weight == 0.0 || keys.balance_devices > 1,
        fmt::format("model.{} = {} with balance_devices = 1, allowed: balance_devices in [2, n_routed_experts = "
                    "{}]",
                    name, weight, c.n_routed_experts),
        "one device is always balanced; balance_devices is usually the expert-parallel size");
  }
  CADRE_CHECK(keys.capacity_factor == 0.0 || keys.expert_capacity == 0,
              fmt::format("model.expert_capacity = {} with capacity_factor = {}, allowed: one of them is 0",
                          keys.expert_capacity, keys.capacity_factor),
              "two answers to how many tokens an expert takes");
  CADRE_CHECK(keys.eval_capacity_factor == 0.0 || keys.eval_expert_capacity == 0,
              fmt::format("model.eval_expert_capacity = {} with eval_capacity_factor = {}, allowed: one of them is 0",
                          keys.eval_expert_capacity, keys.eval_capacity_factor),
              "two answers to how many tokens an expert takes");
  CADRE_CHECK(keys.load_loss_weight == 0.0 || (keys.router_noise && c.num_experts_per_tok < c.n_routed_experts),
              fmt::format("model.load_loss_weight = {} with router_noise = {} and num_experts_per_tok = {}, allowed: "
                          "router_noise = true and fewer than n_routed_experts = {}",
                          keys.load_loss_weight, keys.router_noise, c.num_experts_per_tok, c.n_routed_experts),
              "the expected load is that of noisy top-k");
}

int64_t slots_per_token(const ModelConfig& config) {
  const bool any_number = config.routing.router == "expert_choice" || config.routing.router == "hybrid";
  return any_number ? config.n_routed_experts : config.num_experts_per_tok;
}

int64_t widest_row(const ModelConfig& config) {
  const bool narrow = config.routing.expert_kinds == "projections";
  return narrow ? std::max(config.hidden_size, config.moe_intermediate_size) : config.hidden_size;
}

int64_t router_weights(const ModelConfig& config) {
  const RouterKeys& keys = config.routing;
  int64_t count = 0;
  int64_t width = config.hidden_size;
  for (const int64_t next : hidden_sizes(config)) {
    count += width * next;
    width = next;
  }
  count += width * config.n_routed_experts;
  if (keys.router_two_level) count += config.n_group * config.hidden_size;
  if (keys.router_noise) count += config.n_routed_experts * config.hidden_size;
  return count;
}

int64_t router_buffers(const ModelConfig& config) {
  int64_t rows = config.topk_method == "noaux_tc" ? 1 : 0;
  if (learns_capacity(config.routing)) ++rows;
  if (config.routing.expert_history) rows += 3 * (num_tasks(config) + 1);
  return rows * config.n_routed_experts;
}

}  // namespace cadre
