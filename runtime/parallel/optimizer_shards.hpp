// SPDX-License-Identifier: Apache-2.0
// Sharding of the optimiser's state (ZeRO stage 1; Rajbhandari et al. 2020, arXiv 1910.02054): of the ranks that hold the same
// parameters each keeps the moments of some, updates and saves these, and gets the new values of the others. A parameter is
// never cut, so that files are those of unsharded runs, and so are all bits: an update is element by element.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

#include "comm/group/topology.hpp"
#include "layers/model/model.hpp"
#include "runtime/parallel/process_groups.hpp"

namespace cadre {

// Which rank keeps each of some parameters of these sizes: the largest first, each to the rank that has least. `kept`: the sum
// of sizes of each rank, before and after.
std::vector<int> share_out(const std::vector<int64_t>& sizes, std::vector<int64_t>& kept);

class OptimizerShards {
 public:
  // Of `rank`, whose stages `model` holds. Not `sharded`: all ranks keep all they hold. Not collective.
  OptimizerShards(Model& model, const PipelineRoutes& routes, const Grid& grid, int rank, bool sharded);

  bool sharded() const { return sharded_; }
  // The rank that keeps the parameter where state is sharded, as an index into the ranks that hold it, ascending; nothing
  // where each of them keeps it.
  std::optional<int> owner(const Parameter& parameter) const;
  // Whether this rank keeps the moments of a parameter that it holds, and updates it.
  bool keeps(const Parameter& parameter) const { return !sharded_ || !owner(parameter) || owned_.at(&parameter).here; }
  // Whether no other rank does, of several that hold the parameter.
  bool keeps_alone(const Parameter& parameter) const { return sharded_ && owner(parameter) && keeps(parameter); }
  // Whether this rank counts the parameter in sums over all ranks: its owner, or the first that holds it. The same where state
  // is not sharded, so that sums have the same bits.
  bool counts(const Parameter& parameter, bool is_first_holder) const {
    return owner(parameter) ? owned_.at(&parameter).here && !parameter.is_copy : is_first_holder;
  }
  // Whether this rank writes the parameter, and its moments, into checkpoints.
  bool saves(const Parameter& parameter, bool is_first_holder) const {
    return sharded_ ? counts(parameter, is_first_holder) : is_first_holder;
  }

 private:
  struct Owned {
    int owner;
    bool here;
  };

  void share_out_stage(Stage& stage, Placement placement, const std::vector<int>& ranks, int rank);

  bool sharded_;
  std::unordered_map<const Parameter*, Owned> owned_;
};

}  // namespace cadre
