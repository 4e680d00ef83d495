// SPDX-License-Identifier: Apache-2.0
// Sums of values that arrive at one rank alone: gradients of an expert, some of whose rows other ranks computed.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

// Values in host memory, of the same size on the owner and on its guests. The owner's are read and written while the sum is
// under way.
struct OwnedValues {
  std::span<float> values;
  std::shared_ptr<const void> keeper;  // of the memory of `values`
  int owner = 0;                       // rank of the group
  std::vector<int> guests;             // ranks of the group that send; a guest needs to know none but itself
};

// Adds to the values of the owner those of its guests: ((x + g_0) + g_1) + .., guests in the order of the list, piece by piece.
// An owner and its guests list its values in the same order and call it with the same `tag`. Complete on a guest when its values
// are sent, and they may change.
Request sum_at_owners(const Communicator& group, std::vector<OwnedValues> all, int tag);

}  // namespace cadre
