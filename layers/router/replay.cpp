// SPDX-License-Identifier: Apache-2.0
#include "layers/router/replay.hpp"

#include <algorithm>
#include <span>

#include "comm/base/check.hpp"

namespace cadre {

void use_recorded(Replay& replay, int layer, const Tensor& ids) {
  const auto found = replay.ids.find(layer);
  if (found == replay.ids.end()) return;
  CADRE_CHECK(
      static_cast<int64_t>(found->second.size()) == ids.numel(),
      fmt::format("layer {} has {} choices to replay, its router makes {}", layer, found->second.size(), ids.numel()),
      "the recorded routing is of a model with another number of experts a token");
  const auto num_slots = static_cast<size_t>(ids.dim(1));
  auto* const own = ids.data<int32_t>();
  for (size_t first = 0; first < found->second.size(); first += num_slots) {
    const std::span<const int32_t> recorded = std::span(found->second).subspan(first, num_slots);
    const std::span<int32_t> chosen(own + first, num_slots);
    if (recorded.front() == kNotRecorded) continue;
    for (const int32_t expert : recorded) {
      if (expert < 0) continue;
      ++replay.counts.choices;
      if (std::ranges::find(chosen, expert) == chosen.end()) ++replay.counts.differing;
    }
    std::ranges::copy(recorded, chosen.begin());
  }
}

}  // namespace cadre
