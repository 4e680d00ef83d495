// SPDX-License-Identifier: Apache-2.0
// Sums of values that some ranks of a group hold each, every one with its own set of holders: the gradients of experts
// that have replicas. A set is not worth a communicator, of which a job could need thousands.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// Values of the same size on all their holders.
struct HeldValues {
  std::span<float> values;
  std::shared_ptr<const void> owner;  // of the memory of `values`
  std::vector<int> holders;           // ranks of the group, ascending, this one among them
  Memory* memory = &host_memory();    // of `values`
};

// Begins when `after` is complete, and replaces each of the values by the sum over its holders: x_0 + x_1 + .. in the
// order of holders, computed once and copied, so all holders get the same bits. With n holders a rank sends
// 2 (n - 1) / n times the size, which is the least possible. All holders of any values call it with those in the same order
// and the same `tag`, in [0, kMaxHolderTag]; sums under way at once have different tags. One moves on only while it is
// tested: ranks wait for several in the same order, or for all at once.
inline constexpr int kMaxHolderTag = 16382;
Request sum_over_holders(const Communicator& group, std::vector<HeldValues> held, int tag, std::vector<Request> after);

}  // namespace cadre
