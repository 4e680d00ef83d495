// SPDX-License-Identifier: Apache-2.0
// The table of the keys that say how tokens find experts and what surrounds these, beside those that Hugging Face names
// (config.cpp has them): key, member, allowed values, meaning. It reads, writes, checks and documents them; the defaults of
// the members change nothing.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "layers/model/router_options.hpp"

namespace cadre {
namespace {

constexpr int64_t kMostExperts = 1 << 20;
constexpr int64_t kWidestLayer = 0x7fffffff;

// cv2, cv2_unbiased, and `name` in both forms.
std::vector<Name<VarianceForm>> variance_forms(const std::string& name, VarianceForm::Kind kind) {
  constexpr VarianceForm::Kind kCv2 = VarianceForm::Kind::cv2;
  return {{"cv2", {kCv2, Variance::population}},
          {"cv2_unbiased", {kCv2, Variance::unbiased}},
          {name, {kind, Variance::population}},
          {name + "_unbiased", {kind, Variance::unbiased}}};
}

std::vector<Name<SelectRule>> rule_names() {
#define CADRE_RULE_NAME(name) {#name, SelectRule::name},
  std::vector<Name<SelectRule>> names = {CADRE_SELECT_RULES(CADRE_RULE_NAME)};
#undef CADRE_RULE_NAME
  names.push_back({"dense", SelectRule::dense});
  names.push_back({"plugin", SelectRule::plugin});
  return names;
}

struct ConditionName {
  std::string_view text;
  ExpertCondition::Kind kind;
};
constexpr ConditionName kConditionNames[] = {{"task=", ExpertCondition::Kind::task},
                                             {"position<", ExpertCondition::Kind::position_below},
                                             {"position>=", ExpertCondition::Kind::position_from}};

bool read_number(std::string_view text, int64_t& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

// "6:task=2": expert, what the condition compares, and the value it compares with.
std::optional<ExpertCondition> condition_in(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return std::nullopt;
  int64_t expert = -1;
  if (!read_number(text.substr(0, colon), expert) || expert < 0 || expert >= kMostExperts) return std::nullopt;
  const std::string_view rest = text.substr(colon + 1);
  for (const ConditionName& name : kConditionNames) {
    int64_t value = 0;
    if (!rest.starts_with(name.text) || !read_number(rest.substr(name.text.size()), value)) continue;
    return ExpertCondition{static_cast<int>(expert), name.kind, value};
  }
  return std::nullopt;
}

std::string text_of(const std::vector<ExpertCondition>& conditions) {
  std::string text;
  for (const ExpertCondition& condition : conditions) {
    const auto* const name = std::ranges::find(kConditionNames, condition.kind, &ConditionName::kind);
    text += fmt::format("{}{}:{}{}", text.empty() ? "" : ",", condition.expert, name->text, condition.value);
  }
  return text;
}

bool set_conditions(std::vector<ExpertCondition>& conditions, std::string_view text) {
  std::vector<ExpertCondition> read;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    const std::optional<ExpertCondition> condition = condition_in(text.substr(0, comma));
    if (!condition) return false;
    read.push_back(*condition);
    text = comma == std::string_view::npos ? std::string_view() : text.substr(comma + 1);
  }
  conditions = std::move(read);
  return true;
}

TextMember conditions_text(std::vector<ExpertCondition>& conditions) {
  return {.text = [&conditions] { return text_of(conditions); },
          .set = [&conditions](const std::string& text) { return set_conditions(conditions, text); }};
}

}  // namespace

std::vector<Field> router_fields(ModelConfig& c) {
  return {
      named("router", c.router.select.rule, rule_names(), "rule of selection; see layers/router/README.md"),
      {"plugin", &c.router.select.plugin, any(),
       "shared object with an own router (router = plugin) or exchange (exchange.strategy = plugin)"},
      named("router_gate", c.router.weights.gate, {{"score", GateKind::score}, {"binary", GateKind::binary}},
            "binary: every selected expert has the same weight"),
      list_of("router_hidden_sizes", c.router.scorer.hidden_sizes, 1, kWidestLayer,
              "widths of hidden layers of the gate, such as 64,32"),
      {"router_two_level", &c.router.scorer.two_level, any(), "a second gate scores the n_group groups; softmax only"},
      {"router_noise", &c.router.scorer.noise, any(),
       "learned Gaussian noise on the logits in training (Shazeer et al. 2017)"},
      {"router_jitter_noise", &c.router.scorer.jitter, from_below(0, 1), "input times U(1 - eps, 1 + eps) in training"},
      {"router_top_p", &c.router.select.top_p, between(0, 1),
       "select experts until their scores reach this share; 1: no limit"},
      {"hybrid_load", &c.router.select.hybrid_load, at_least(0),
       "router = hybrid: experts choose if the largest load exceeds (1 + this) times the mean"},
      list_of("expert_tasks", c.router.bias.expert_task, -1, 1023,
              "task of each expert, -1 for none, such as 0,1,2,3,1,0,3,4"),
      {"task_bias", &c.router.bias.task, at_least(0),
       "added to the scores of the experts of a token's task; usually 0.2"},
      list_of("task_top_k", c.router.select.task_top_k, 1, kMostExperts,
              "number of experts per token for each task, such as 3,2,3,1"),
      {"expert_history", &c.router.bias.history, any(),
       "multiply scores by the success of the expert in the task, a factor in [0.95, 1.05]"},
      named("combine_weights", c.router.bias.weighs, {{"score", false}, {"biased", true}},
            "biased: task_bias and expert_history also change the weights"),
      {"node_count", &c.router.eligibility.nodes.groups, between(1, kMostExperts),
       "number of hosts that the experts are divided among, in order"},
      {"node_limit", &c.router.eligibility.nodes.kept, between(1, kMostExperts),
       "largest number of hosts for the experts of a token"},
      {"expert_conditions",
       conditions_text(c.router.eligibility.conditions),
       {.form = "EXPERT:task=N, EXPERT:position<N or EXPERT:position>=N, as 6:task=2"},
       "tokens that an expert accepts, such as 6:task=2,7:position<128"},
      list_of("dead_experts", c.router.dead_experts, 0, kMostExperts - 1,
              "experts that no token may select, such as 3,7"),
      {"capacity_factor", &c.router.capacity.factor, at_least(0), "capacity of an expert / mean load; 0: no limit"},
      {"eval_capacity_factor", &c.router.capacity.eval_factor, at_least(0),
       "the same in evaluation; decoding has no limit"},
      {"expert_capacity", &c.router.capacity.tokens, at_least(0),
       "capacity of an expert in tokens of a micro-batch of all ranks; 0: use capacity_factor"},
      {"eval_expert_capacity", &c.router.capacity.eval_tokens, at_least(0),
       "the same in evaluation; decoding has no limit"},
      named("capacity_drop", c.router.capacity.drop,
            {{"probability", DropPolicy::probability}, {"position", DropPolicy::position}},
            "which tokens are dropped: low scores or last positions"),
      named("capacity_kind", c.router.capacity.kind,
            {{"fixed", CapacityKind::fixed}, {"dynamic", CapacityKind::dynamic}, {"learned", CapacityKind::learned}},
            "dynamic: follows utilisation; learned: follows demand"),
      {"capacity_rate", &c.router.capacity.rate, at_least(0), "step of capacity_kind = learned"},
      {"capacity_renormalise", &c.router.capacity.renormalise, any(),
       "normalise weights over the experts that kept the token"},
      {"seq_aux", &c.router.losses.by_sequence, any(),
       "aux_loss_alpha is the weight of the loss per sequence (DeepSeek-V3), not per batch"},
      {"kl_loss_weight", &c.router.losses.kl, at_least(0), "KL divergence of the mean scores from uniform"},
      {"importance_loss_weight", &c.router.losses.importance, at_least(0),
       "CV^2 of summed weights (Shazeer et al. 2017)"},
      named("importance_form", c.router.losses.importance_form, variance_forms("variance", VarianceForm::Kind::raw),
            "cv2: variance / mean^2; variance: grows with the square of the tokens"),
      {"load_loss_weight", &c.router.losses.load, at_least(0), "CV^2 of the expected load; needs router_noise"},
      {"expert_loss_weight", &c.router.losses.expert, at_least(0), "expert-level balance (DeepSeek-V2)"},
      {"device_loss_weight", &c.router.losses.device, at_least(0), "device-level balance (DeepSeek-V2)"},
      {"communication_loss_weight", &c.router.losses.communication, at_least(0), "communication balance (DeepSeek-V2)"},
      {"expert_variance_weight", &c.router.losses.expert_variance, at_least(0),
       "variance of the mean scores of experts"},
      named("expert_variance_form", c.router.losses.expert_form, variance_forms("counts", VarianceForm::Kind::counts),
            "cv2: variance / mean^2; counts: variance of slots / ideal load^2, gradient through the scores"),
      {"device_variance_weight", &c.router.losses.device_variance, at_least(0),
       "variance of the mean scores of devices"},
      named("device_variance_form", c.router.losses.device_form, variance_forms("counts", VarianceForm::Kind::counts),
            "the same for devices"),
      {"diversity_loss_weight", &c.router.losses.diversity, at_least(0),
       "mean cosine of the outputs of two experts of a token"},
      {"router_z_loss_coef", &c.router.losses.z, at_least(0), "logsumexp(logits)^2 (ST-MoE)"},
      {"balance_devices", &c.router.losses.devices, between(1, kMostExperts),
       "number of devices in these losses, independent of the ranks; at least 2 to have an effect"},
      named("balance_device_layout", c.router.losses.layout,
            {{"contiguous", DeviceLayout::contiguous}, {"cyclic", DeviceLayout::cyclic}},
            "experts of a device: neighbours, or equal (expert mod devices)"),
      named("expert_kinds", c.expert_kinds,
            {{"same", ExpertKinds::same},
             {"typed", ExpertKinds::typed},
             {"mixture", ExpertKinds::mixture},
             {"projections", ExpertKinds::projections}},
            "typed: three widths in turn; mixture: each expert is a mixture; projections: single gate, up and down in "
            "turn"),
      {"inner_experts", &c.inner_experts, between(1, 1 << 10), "experts inside an expert with expert_kinds = mixture"},
      {"inner_experts_per_tok", &c.inner_experts_per_tok, between(1, 1 << 10), "inner experts that a token visits"},
      {"shared_expert_mean", &c.shared_expert_mean, any(), "average the shared experts instead of adding them"},
      named("norm_position", c.norm_position, {{"pre", NormPosition::pre}, {"post", NormPosition::post}},
            "post: after each residual sum (Vaswani et al. 2017)"),
      {"ffn_highway", &c.ffn_highway, any(), "g FFN(x) + (1 - g) x in dense layers and after every mixture"},
  };
}

}  // namespace cadre
