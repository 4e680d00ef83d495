// SPDX-License-Identifier: Apache-2.0
// Sharding of the optimiser's state (ZeRO stage 1; Rajbhandari et al. 2020, arXiv 1910.02054): of the ranks that hold the same
// parameters each keeps the moments of some, updates and saves these, and gets the new values of the others. A parameter is
// never cut, so that files are those of unsharded runs, and so are all bits: an update is element by element.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "comm/group/grid.hpp"
#include "layers/model/model.hpp"
#include "runtime/train/process_groups.hpp"

namespace cadre {

class GradientReduction;
class Lanes;

// Which of `num_ranks` keeps each of some parameters of these sizes, so that sums of sizes are about equal: the largest first,
// each to the rank that has least.
std::vector<int> share_out(const std::vector<int64_t>& sizes, int num_ranks);

class OptimizerShards {
 public:
  // Of `rank`, whose stages `model` holds. Not `sharded`: all ranks keep all they hold. Not collective.
  OptimizerShards(Model& model, const PipelineRoutes& routes, const Grid& grid, int rank, bool sharded);

  // Whether this rank keeps the moments of a parameter that it holds, and updates it.
  bool keeps(const Parameter& parameter) const;
  // Whether no other rank does, of several that hold the parameter.
  bool keeps_alone(const Parameter& parameter) const { return owners_.contains(&parameter) && keeps(parameter); }
  // Whether this rank writes the parameter, and its moments, into checkpoints: the rank that alone keeps these, else the first
  // of those that hold it.
  bool saves(const Parameter& parameter, bool is_first_holder) const {
    return owners_.contains(&parameter) ? keeps(parameter) && !parameter.is_copy : is_first_holder;
  }

  // Hands the values of the parameters that this rank keeps to the ranks that hold them too. Collective over each of the
  // groups of `gradients`.
  void exchange_values(GradientReduction& gradients, Lanes& lanes) const;

 private:
  // Parameters of one stage that the same ranks hold.
  struct Group {
    int stage;
    Placement placement;
    int rank;                                         // of this rank in the group
    std::vector<std::vector<Parameter*>> parameters;  // [ranks] that each keeps
  };

  std::vector<Group> groups_;                          // of more than one rank
  std::unordered_map<const Parameter*, bool> owners_;  // of all in groups_: whether this rank keeps it
};

}  // namespace cadre
