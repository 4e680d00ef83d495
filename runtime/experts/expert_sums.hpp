// SPDX-License-Identifier: Apache-2.0
// Makes the experts of one model from those of another: each new expert is a weighted mean of old ones, and so is all
// that the router holds of it. Growth repeats experts, a merge adds some up; both are this, on named tensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/checkpoint/model_checkpoint.hpp"

namespace cadre {

// sum of weight x old expert, divided by the sum of the weights: whole numbers, so that the mean of equal experts is that
// expert to the bit.
struct ExpertSum {
  struct Part {
    int expert;
    int64_t weight;  // >= 1

    bool operator==(const Part&) const = default;
  };
  std::vector<Part> parts;

  bool operator==(const ExpertSum&) const = default;
};

// By mixture layer: what each new expert is made of.
using ExpertSums = std::map<int, std::vector<ExpertSum>>;

// Each expert twice, as neighbours: expert e becomes 2e and 2e + 1. So groups stay groups, and contiguous experts stay on
// their rank.
ExpertSums twice(const std::vector<int>& layers, int num_experts);

// Fills `to` from `from`, tensors of the same names but for the ids of experts. Of a router, a tensor with as many rows as
// there are experts is summed row by row, one with as many columns column by column; everything else is copied. Throws when
// something of `to` has no counterpart.
void sum_experts(const std::vector<NamedTensor>& from, const std::vector<NamedTensor>& to, const ExpertSums& sums,
                 int num_old_experts);

// Adds scale rms(W) N(0, 1) to each weight W of an expert whose id is odd, a second one of `twice`. The numbers are keyed by
// (seed, name of the weight, id of the expert).
void disturb_copies(const std::vector<NamedTensor>& values, double scale, uint64_t seed);

}  // namespace cadre
