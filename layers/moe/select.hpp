// SPDX-License-Identifier: Apache-2.0
// The piece that most new routers replace: from what decides to the experts of each token. One rule, one file.
#pragma once

#include <memory>
#include <vector>

#include "layers/moe/routing.hpp"

namespace cadre {

enum class SelectRule {
  token_choice,   // a token takes its best experts; dense when it takes all
  expert_choice,  // an expert takes its best tokens (Zhou et al. 2022)
  hybrid,         // token choice while the load is even, else expert choice
  sinkhorn,       // token choice from scores balanced by Sinkhorn's iteration
  hierarchical,   // equally many experts from each of the best groups
  by_kind,        // equally many experts of each of three kinds, which take turns by id
};

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
};

class Selector {
 public:
  virtual ~Selector() = default;
  // The most experts a token can have: columns of ids.
  virtual int num_slots() const = 0;
  // Fills routing.ids [T, num_slots] from routing.choice, whose -infinities are never chosen: best first, ties to the lower
  // index, -1 where there is none. May be collective over the lane's data group: all ranks of it call together.
  virtual Task<void> select(LaneContext& ctx, Routing& routing) const = 0;
};

std::unique_ptr<Selector> make_selector(const SelectOptions& options);

// The rules, by file select_*.cpp.
std::unique_ptr<Selector> make_token_choice(const SelectOptions& options);
std::unique_ptr<Selector> make_expert_choice(const SelectOptions& options);
std::unique_ptr<Selector> make_hybrid(const SelectOptions& options);
std::unique_ptr<Selector> make_sinkhorn(const SelectOptions& options);
std::unique_ptr<Selector> make_hierarchical(const SelectOptions& options);
std::unique_ptr<Selector> make_by_kind(const SelectOptions& options);

// --- what rules share ------------------------------------------------------------------------------------------------

// The best `top_k` of choice [T,E] into the first columns of ids [T,slots], -1 elsewhere and where choice is -infinity.
void choose_best(Context& ctx, const Tensor& choice, int top_k, const Tensor& ids);
// -1 behind as many experts as the token may visit.
void limit_count(const SelectOptions& options, const TokenFacts& tokens, const Tensor& scores, const Tensor& ids);

}  // namespace cadre
