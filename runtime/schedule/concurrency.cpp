// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/concurrency.hpp"

#include <algorithm>
#include <span>

#include "runtime/schedule/verify.hpp"

namespace cadre {
namespace {

Concurrency concurrency_of_rank(const Program& program, const OpList& ops, int live_forwards, bool recomputes) {
  const auto overlapped = std::ranges::count(ops, OpKind::overlapped, &Op::kind);
  Concurrency most = {.lanes = live_forwards + static_cast<int>(std::min<int64_t>(program.num_postponed, overlapped))};
  int split = 0;      // backward passes without their weight gradients
  int postponed = 0;  // of overlapped ops
  for (std::span<const Op> left = ops; !left.empty(); left = left.subspan(count_together(left))) {
    const OpKind kind = left.front().kind;
    const auto together = static_cast<int>(count_together(left));
    const bool has_forward = kind == OpKind::forward || kind == OpKind::overlapped;
    const bool has_backward = kind == OpKind::backward || kind == OpKind::backward_input || kind == OpKind::overlapped;
    const int works = (has_forward && recomputes ? together : 0) + (has_backward ? together : 0);
    most.works = std::max(most.works, split + postponed + works);
    most.defers = most.defers || kind == OpKind::backward_input || kind == OpKind::overlapped || together > 1;
    most.passes = std::max(most.passes, kind == OpKind::overlapped ? 2 : together);
    if (kind == OpKind::backward) postponed = 0;
    if (kind == OpKind::overlapped) postponed = std::min(postponed + 1, program.num_postponed);
    if (kind == OpKind::backward_input) ++split;
    if (kind == OpKind::backward_weight) --split;
  }
  return most;
}

}  // namespace

std::vector<Concurrency> concurrency_of(const Program& program, bool recomputes) {
  const std::vector<int> live_forwards = verify(program).peak_live_forwards;
  std::vector<Concurrency> of_rank;
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    of_rank.push_back(concurrency_of_rank(program, program.ops[rank], live_forwards[rank], recomputes));
  }
  return of_rank;
}

int most_lanes(const std::vector<Concurrency>& of_rank) {
  return std::ranges::max_element(of_rank, {}, &Concurrency::lanes)->lanes;
}

}  // namespace cadre
