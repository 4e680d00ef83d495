// SPDX-License-Identifier: Apache-2.0
// Which expert of a layer lies in which slot of which rank: the value that every placement policy makes. An expert may
// have several copies; its load is shared equally among them. Example, 3 experts in 4 slots on 2 ranks:
//
//   slot      0 1 | 2 3
//   expert    0 1 | 1 2      first_slot = {0, 2, 4}
//   copy      0 0 | 1 0      expert 1 has two copies, each takes half of its load
#pragma once

#include <span>
#include <vector>

#include "comm/exchange/expert_map.hpp"

namespace cadre {

struct ExpertSlots {
  static constexpr int kEmpty = -1;

  std::vector<int> expert;      // [slots] by rank; kEmpty where a slot is not used
  std::vector<int> copy;        // [slots] which copy of its expert, from 0; kEmpty likewise
  std::vector<int> first_slot;  // [ranks + 1]

  int num_slots() const { return static_cast<int>(expert.size()); }
  int num_ranks() const { return static_cast<int>(first_slot.size()) - 1; }
  std::span<const int> of_rank(int rank) const {
    return std::span(expert).subspan(first_slot[rank], first_slot[rank + 1] - first_slot[rank]);
  }

  bool operator==(const ExpertSlots&) const = default;
};

// What a policy is asked to fill.
struct PlacementSizes {
  int slots = 0;   // of all ranks together
  int groups = 1;  // of neighbouring experts, which a token picks its experts from
  int nodes = 1;   // that the ranks are spread over
  int ranks = 1;
};

// Where each of `ranks` ranks begins, as even as possible, the first ones one larger; one entry more.
std::vector<int> even_parts(int slots, int ranks);

// Every expert once, neighbours together: what runs without a placement.
ExpertSlots contiguous_slots(int num_experts, int num_ranks);

// Numbers the copies of each expert in slot order.
void number_copies(ExpertSlots& slots, int num_experts);

// Experts to the slots of their ranks: what has a slot there in `before`, which may be null, keeps it; the rest follows by id.
ExpertSlots settle(const std::vector<int>& first_slot, std::vector<std::vector<int>> experts_of, int num_experts,
                   const ExpertSlots* before);

// [experts] copies of each; two on one rank count as two.
std::vector<int> count_copies(const ExpertSlots& slots, int num_experts);

// [ranks] what each rank works on; weight [experts].
std::vector<double> rank_loads(const ExpertSlots& slots, std::span<const double> weight);
// 1 is even, also where there is no load.
double max_over_mean(std::span<const double> loads);

// Copies that a rank of `after` has and the same rank of `before` has not: weights to send.
int copies_moved(const ExpertSlots& before, const ExpertSlots& after);

ExpertMap to_expert_map(const ExpertSlots& slots, int num_experts);

}  // namespace cadre
