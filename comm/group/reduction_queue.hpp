// SPDX-License-Identifier: Apache-2.0
// Sums of large arrays over the ranks of a group, a few pieces under way at a time, so that a small message waits for a
// piece and not for an array. For gradients and parameters (Rajbhandari et al. 2020, arXiv 1910.02054).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

// Where rank r's slice of an array begins, and where the last one ends: [ranks + 1] elements, ascending from 0.
using RankSlices = std::vector<int64_t>;
// As equal as possible.
RankSlices equal_slices(int64_t count, int num_ranks);
int64_t longest_of(const RankSlices& slices);

// Where a rank wants elements [first, first + to.size()) of a sum besides, as soon as they are summed: `to` becomes them, or adds
// them to what it is. The array may then go.
struct SumSink {
  std::span<float> to = {};
  int64_t first = 0;
  bool adds = false;
  std::shared_ptr<const void> owner = {};  // of `to`
};

// All calls are collective: the ranks of the group make the same calls in the same order. Arrays are equally long on all
// ranks, lie on the host and are kept by `owner`. A test of any operation of the queue advances all of them.
class ReductionQueue {
 public:
  static constexpr size_t kMostBytes = size_t{16} << 20;  // of the pieces under way, of few ranks
  // The same of any number of ranks; O(P).
  static size_t most_bytes(int num_ranks);
  // Of a piece, all slices together: a message of it is never shorter than 32 KiB.
  static int64_t piece_elements(int num_ranks);
  // Whether a gather goes through all ranks, as it does where one holds more than twice its share: what it would send is then P - 1
  // times its slice, and each sends at most twice the array so.
  static bool is_uneven(const RankSlices& slices);

  // Collective. `group` outlives this object and all operations. `wire`: the type in which terms and sums of reductions travel,
  // f32 or bf16. Additions are in f32.
  explicit ReductionQueue(const Communicator& group, DType wire = DType::f32);

  // Rank r's slice becomes the sum x_0 + x_1 + .. over the ranks, added in this order whatever the slices are. The other
  // slices stay. A rank sends all slices but its own.
  // A sink lies in this rank's slice. The array's owner is let go when the operation ends.
  Request reduce_scatter(std::span<float> values, std::shared_ptr<const void> owner, RankSlices slices,
                         SumSink sink = {});
  // The other slices become those of their ranks; never rounded.
  Request all_gather(std::span<float> values, std::shared_ptr<const void> owner, RankSlices slices);
  // The whole becomes the same sums, equal to the bit on all ranks.
  Request all_reduce(std::span<float> values, std::shared_ptr<const void> owner, SumSink sink = {});

  const Communicator& group() const;

  class Pieces;

 private:
  std::shared_ptr<Pieces> pieces_;
};

}  // namespace cadre
