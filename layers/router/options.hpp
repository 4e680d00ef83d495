// SPDX-License-Identifier: Apache-2.0
// What the router of a mixture layer does, as plain values: one struct for each piece of routing.hpp. ModelConfig holds a
// RouterOptions whose members a run file or config.json sets by key (layers/model/router_keys.cpp); router_options() fills in
// those that follow from other keys of the model: sizes, group limits, and what says "derived" below.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cadre {

enum class ScoreFunction { softmax, sigmoid };

struct ScoreOptions {
  int64_t hidden = 0;
  int num_experts = 0;
  ScoreFunction function = ScoreFunction::softmax;
  std::vector<int64_t> hidden_sizes;  // of layers before the last; none: one linear layer
  bool two_level = false;             // coarse_groups is the model's number of groups
  int coarse_groups = 0;              // derived; of the second gate, dividing the experts; 0: one level. Softmax only.
  bool noise = false;
  double jitter = 0.0;
  double init_std = 0.02;

  bool operator==(const ScoreOptions&) const = default;
};

struct BiasOptions {
  bool balance = false;                   // derived; a bias moved against the load, see update_selection_bias
  double task = 0.0;                      // added for experts of the token's task
  std::vector<int32_t> expert_task = {};  // [E] the task of each expert, -1: none; empty: no expert has one
  int num_tasks = 0;                      // derived
  bool history = false;
  bool weighs = false;  // routing weights come from (score + task bias) history

  bool moves() const { return balance || task != 0.0 || history; }
  bool operator==(const BiasOptions&) const = default;
};

// Group-limited routing (DeepSeek-V2, arXiv 2405.04434, section 2.2.2; V3, arXiv 2412.19437, section 2.1.2): experts lie in
// groups of neighbours, as even as possible, and a token may choose from the best groups only. With as many groups as
// hosts a token visits at most `kept` of them, whatever the number of ranks.
struct GroupLimit {
  int groups = 1;
  int kept = 1;    // of them, for each token
  int summed = 1;  // the score of a group is the sum of so many of its best: 1 in V2, 2 in V3

  bool limits() const { return kept < groups; }
  bool operator==(const GroupLimit&) const = default;
};

// An expert that works only where a condition holds; the conditions of one expert must hold together.
struct ExpertCondition {
  enum class Kind : uint8_t { task, position_below, position_from };
  int expert = 0;
  Kind kind = Kind::task;
  int64_t value = 0;  // the task, or a position within the sequence

  bool operator==(const ExpertCondition&) const = default;
};

struct EligibilityOptions {
  GroupLimit groups = {};
  GroupLimit nodes = {};  // the same again, for the hosts that experts are thought to be on
  std::vector<ExpertCondition> conditions = {};

  bool limits() const { return groups.limits() || nodes.limits() || !conditions.empty(); }
  bool operator==(const EligibilityOptions&) const = default;
};

// The built-in rules; a line here adds one: model.router = NAME, which make_NAME makes (select.hpp).
#define CADRE_SELECT_RULES(RULE)                                                      \
  RULE(token_choice)  /* a token takes its best experts */                            \
  RULE(expert_choice) /* an expert takes its best tokens (Zhou et al. 2022) */        \
  RULE(hybrid)        /* token choice while the load is even, else expert choice */   \
  RULE(sinkhorn)      /* token choice from scores balanced by Sinkhorn's iteration */ \
  RULE(hierarchical)  /* equally many experts from each of the best groups */

#define CADRE_ENUMERATOR(name) name,
enum class SelectRule {
  dense,    // token choice of all experts
  plugin,   // what a shared object says
  by_kind,  // derived; equally many experts of each of three kinds, which take turns by id
  CADRE_SELECT_RULES(CADRE_ENUMERATOR)
};
#undef CADRE_ENUMERATOR

struct SelectOptions {
  SelectRule rule = SelectRule::token_choice;
  int num_experts = 0;
  int top_k = 0;
  // Token choice: a token stops at the first of its experts whose scores sum to this share of all; 1: never.
  double top_p = 1.0;
  std::vector<int32_t> task_top_k = {};  // by task, how many experts its tokens visit, at most top_k; empty: top_k
  // Hybrid: experts choose where the fullest has more than 1 + hybrid_load times the mean.
  double hybrid_load = 0.8;
  // Hierarchical, and the groups that it chooses from.
  int groups = 1;
  int kept_groups = 1;
  std::string plugin = {};  // path of a shared object with an own rule or an own exchange; empty: none

  bool operator==(const SelectOptions&) const = default;
};

enum class DropPolicy : uint8_t {
  probability,  // the lowest scores are left out
  position,     // the last ones: all first choices come before all second ones, each in the order of tokens
};

enum class CapacityKind : uint8_t {
  fixed,
  // By a running mean of each expert's utilisation, count / (T K / E): u += 0.1 (count / mean - u), from 1. Below 0.5 the
  // capacity is int(0.8 C), above 1.5 int(1.2 C).
  dynamic,
  // The sum over experts stays E C and its division is learned from the demand, not by gradient: with l [E], from 0,
  // C_e = ceil(E C softmax(l)_e), and after a step l_e += rate sign(demand_e / mean demand - E softmax(l)_e).
  learned,
};

struct CapacityOptions {
  double factor = 0.0;       // 0: every token is taken
  double eval_factor = 0.0;  // the same outside of training
  int64_t tokens = 0;        // C itself, where it is not 0; the factor of the same phase is then 0
  int64_t eval_tokens = 0;
  DropPolicy drop = DropPolicy::probability;
  CapacityKind kind = CapacityKind::fixed;
  double rate = 0.01;        // of learned
  bool renormalise = false;  // share the weight among the experts that are left

  bool operator==(const CapacityOptions&) const = default;
};

enum class GateKind : uint8_t {
  score,
  // Every chosen expert counts the same: 1, or 1 / number of chosen when renormalised. The choice has no derivative; the
  // gradient passes straight through, as if the weight were the score (times the same 1 / number).
  binary,
};

struct WeightOptions {
  // Divide by the sum over the chosen, plus 1e-20. A token that a dynamic K left one expert then gives it all the weight, as
  // much as its other tokens share out, and learns nothing about the choice.
  bool renormalise = true;  // derived
  double scale = 1.0;       // derived; applied last
  GateKind gate = GateKind::score;
  // Derived. 0: one level. Else, with g the group of e among so many equal ones and S_g the sum of the scores of all its experts,
  // renormalised at both levels: w_e = S_g / (sum of S over the groups with a chosen expert) s_e / (sum over the chosen of g).
  int groups = 0;
  // Derived. Equal parts of a token's slots that share out the weight each for themselves; only the last one is scaled.
  int parts = 1;

  bool operator==(const WeightOptions&) const = default;
};

// The variance: population divides the sum of squares by n, unbiased by n - 1 (for n = 1: 0).
enum class Variance { population, unbiased };

// Which experts are thought to be together on a device: neighbours, cut as ExpertMap::contiguous cuts them, or those of one
// remainder, expert mod devices.
enum class DeviceLayout { contiguous, cyclic };

// What the variance of a loss is of and divided by; losses.hpp has the formulas.
struct VarianceForm {
  enum class Kind : uint8_t { cv2, raw, counts };
  Kind kind = Kind::cv2;
  Variance variance = Variance::population;

  bool operator==(const VarianceForm&) const = default;
};

// The weight of each loss of losses.hpp; 0: off.
struct LossOptions {
  double balance = 0.0;
  bool by_sequence = false;
  double kl = 0.0;
  double importance = 0.0;
  double load = 0.0;
  double expert = 0.0;
  double device = 0.0;
  double communication = 0.0;
  double expert_variance = 0.0;
  double device_variance = 0.0;
  double z = 0.0;
  double diversity = 0.0;   // of the layer: the router does not see outputs
  int devices = 1;          // D
  int devices_a_token = 1;  // derived; M
  DeviceLayout layout = DeviceLayout::contiguous;
  VarianceForm importance_form = {};
  VarianceForm expert_form = {};
  VarianceForm device_form = {.variance = Variance::unbiased};

  bool operator==(const LossOptions&) const = default;
};

struct RouterOptions {
  int64_t hidden = 0;
  int num_experts = 0;
  int top_k = 0;
  ScoreFunction score = ScoreFunction::softmax;
  WeightOptions weights = {};
  GroupLimit groups = {};
  bool selection_bias = false;  // balance without auxiliary loss: a bias decides, but does not weigh
  double init_std = 0.02;

  // What a single piece reads; Router fills in sizes from the above.
  ScoreOptions scorer = {};
  BiasOptions bias = {};
  EligibilityOptions eligibility = {};
  SelectOptions select = {};
  CapacityOptions capacity = {};
  LossOptions losses = {};
  std::vector<int> dead_experts = {};

  bool operator==(const RouterOptions&) const = default;
};

// same: a feed-forward network each. typed: three kinds of them that take turns by global id, named for what each does
// most: gate experts (SwiGLU, as `same`), up experts (down(gelu(up x)) of twice the width) and down experts (the same of
// half the width). mixture: each is a mixture of such networks itself (Shazeer et al. 2017, appendix B). projections: each is a
// single projection of SwiGLU, see projections.hpp.
enum class ExpertKinds : uint8_t { same, typed, mixture, projections };
enum class Projection : uint8_t { gate, up, down };

}  // namespace cadre
