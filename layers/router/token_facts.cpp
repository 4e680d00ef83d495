// SPDX-License-Identifier: Apache-2.0
#include "layers/router/token_facts.hpp"

#include <algorithm>
#include <span>

#include "comm/base/check.hpp"

namespace cadre {

int64_t TokenFacts::number_of(int64_t t) const {
  if (sequence_stride == 0 || sequence_length == 0) return first + t;
  return first + t / sequence_length * sequence_stride + t % sequence_length;
}

int64_t TokenFacts::position_of(int64_t t) const {
  if (position.defined()) return position.data<int32_t>()[t];
  const int64_t stride = sequence_stride > 0 ? sequence_stride : sequence_length;
  return stride > 0 ? number_of(t) % stride : number_of(t);
}

DropoutRows dropout_rows(Arena& arena, const TokenFacts& tokens, int64_t num_rows) {
  const Tensor rows = arena.take_host("dropout", DType::i64, {num_rows});
  for (int64_t t = 0; t < num_rows && !arena.is_dry_run(); ++t) rows.data<int64_t>()[t] = tokens.number_of(t);
  return {.seed = tokens.seed, .step = tokens.step, .rows = rows};
}

TokenFacts shifted(Arena& arena, const TokenFacts& tokens, const Tensor& kept, int64_t length, int64_t from_length) {
  // Every member is named, so that a new one does not compile until it is said here what becomes of it.
  const auto& [seed, step, first, sequence_length, sequence_stride, position, task, num_experts, replay] = tokens;
  const auto of_rows = [&](const Tensor& fact) {
    if (!fact.defined()) return Tensor();
    const Tensor rows = arena.take_host("token facts", DType::i32, {kept.dim(0)});
    if (arena.is_dry_run()) return rows;
    for (int64_t row = 0; row < kept.dim(0); ++row) {
      rows.data<int32_t>()[row] = fact.data<int32_t>()[kept.data<int32_t>()[row]];
    }
    return rows;
  };
  int64_t stride = sequence_stride;
  if (stride == 0 && sequence_length > 0) stride = from_length;
  return {.seed = seed,
          .step = step,
          .first = first,
          .sequence_length = sequence_length > 0 ? length : 0,
          .sequence_stride = stride,
          .position = of_rows(position),
          .task = of_rows(task),
          .num_experts = of_rows(num_experts),
          .replay = replay};
}

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
