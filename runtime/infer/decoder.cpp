// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/decoder.hpp"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "comm/base/check.hpp"
#include "runtime/config/parsed_keys.hpp"

namespace cadre {
namespace {

std::span<const float> row_of(const Tensor& rows, int64_t row) {
  return {rows.data<float>() + row * rows.dim(1), static_cast<size_t>(rows.dim(1))};
}

// What stands at `position` of a text with drafts behind it.
int32_t token_at(std::span<const int32_t> text, const std::vector<int32_t>& drafts, int64_t position) {
  const auto at = static_cast<size_t>(position);
  return at < text.size() ? text[at] : drafts[at - text.size()];
}

}  // namespace

Decoder::Decoder(Worker& worker, int64_t num_slots, int64_t capacity, ExpertCache* expert_cache,
                 const RecordedRouting* replay)
    : worker_(worker),
      expert_cache_(expert_cache),
      recorded_(replay),
      slots_(static_cast<size_t>(num_slots)),
      mark_(worker.arena().mark()) {
  Context ctx{worker.kernels(), cache_arena_, DType::f32};
  caches_ = worker.model().make_caches(ctx, num_slots, capacity);
}

Tensor Decoder::take(int64_t num_rows) const {
  return worker_.arena().take("decode", DType::f32, {num_rows, worker_.model().config().hidden_size});
}

LaneContext Decoder::context(const NextTokens& tokens) {
  LaneContext ctx = worker_.inference_context();
  ctx.expert_cache = expert_cache_;
  ctx.routed = &routed_;
  ctx.decoding = true;
  const int64_t num_rows = tokens.positions.dim(0);
  const Tensor task = ctx.arena.take_host("decode", DType::i32, {num_rows});
  const Tensor num_experts = ctx.arena.take_host("decode", DType::i32, {num_rows});
  const auto is_limited = [](const Slot& slot) { return slot.num_experts > 0; };
  int64_t row = 0;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const Slot& of = slots_[slot];
    const int64_t most = is_limited(of) ? of.num_experts : worker_.model().config().n_routed_experts;
    const auto [first, count] = tokens.spans[slot];
    for (int64_t i = 0; i < count; ++i, ++row) {
      task.data<int32_t>()[row] = of.tasks.empty() ? kNoTask : of.tasks[static_cast<size_t>(first + i)];
      num_experts.data<int32_t>()[row] = static_cast<int32_t>(most);
    }
  }
  ctx.tokens.position = tokens.positions;
  ctx.tokens.task = task;
  if (std::ranges::any_of(slots_, is_limited)) ctx.tokens.num_experts = num_experts;
  return ctx;
}

Replay Decoder::replay_of(const NextTokens& tokens) const {
  Replay replay;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const auto [first, count] = tokens.spans[slot];
    for (int64_t position = first; position < first + count; ++position) {
      const bool is_recorded = position < slots_[slot].num_recorded;
      recorded_->append(replay, is_recorded ? std::optional(slots_[slot].first_recorded + position) : std::nullopt);
    }
  }
  return replay;
}

Tensor Decoder::read(const std::vector<Reading>& readings) {
  CADRE_ASSERT(readings.size() == slots_.size());
  worker_.arena().release(mark_);
  std::vector<NextTokens::Span> spans;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const Reading& reading = readings[slot];
    spans.push_back({reading.first, static_cast<int64_t>(reading.tokens.size())});
    slots_[slot].first = reading.first;
    slots_[slot].num_experts = reading.num_experts;
    slots_[slot].first_recorded = reading.first_recorded;
    slots_[slot].num_recorded = reading.num_recorded;
    slots_[slot].tasks.resize(reading.tasks.empty() ? 0 : static_cast<size_t>(reading.first));
    std::ranges::copy(reading.tasks, std::back_inserter(slots_[slot].tasks));
    if (reading.first == 0) slots_[slot].tail.clear();
  }
  const NextTokens tokens = next_tokens(worker_.arena(), std::move(spans));
  LaneContext ctx = context(tokens);
  if (recorded_ != nullptr) {
    replay_ = replay_of(tokens);
    ctx.tokens.replay = &replay_;
  }
  Tensor logits;
  Task<void> task = read_into(logits, ctx, readings, tokens);
  worker_.run(task);
  replayed_.choices += replay_.counts.choices;
  replayed_.differing += replay_.counts.differing;
  return logits;
}

Task<void> Decoder::read_into(Tensor& logits, LaneContext& ctx, const std::vector<Reading>& readings,
                              NextTokens tokens) {
  const Tensor ids = ctx.arena.take_host("decode", DType::i32, {tokens.positions.dim(0)});
  std::vector<int32_t> wanted;
  int64_t row = 0;
  for (const Reading& reading : readings) {
    std::ranges::copy(reading.tokens, ids.data<int32_t>() + row);
    row += static_cast<int64_t>(reading.tokens.size());
    for (int64_t i = row - reading.num_logits; i < row; ++i) wanted.push_back(static_cast<int32_t>(i));
  }
  Task<Tensor> decode = worker_.model().decode(ctx, ids, tokens, caches_);
  const Tensor hidden = co_await decode;
  row = 0;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].hidden = hidden.rows(row, tokens.spans[slot].count);
    row += tokens.spans[slot].count;
  }
  const auto num_wanted = static_cast<int64_t>(wanted.size());
  const Tensor rows = take(num_wanted);
  ctx.kernels.gather_rows(hidden, Tensor(wanted.data(), DType::i32, {num_wanted}), Tensor(), rows);
  logits = host_side(ctx, "decode", worker_.model().last_stage().logits(ctx, rows));
  Request computed = ctx.kernels.launched();
  co_await computed;
}

std::vector<std::vector<int32_t>> Decoder::draft(const std::vector<std::span<const int32_t>>& texts,
                                                 const Choose& choose) {
  CADRE_ASSERT(texts.size() == slots_.size());
  std::vector<NextTokens::Span> spans;
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const int64_t tail_rows = static_cast<int64_t>(slots_[slot].tail.size()) / worker_.model().config().hidden_size;
    const int64_t first = slots_[slot].first - tail_rows;
    spans.push_back({first, texts[slot].empty() ? 0 : static_cast<int64_t>(texts[slot].size()) - 1 - first});
  }
  const NextTokens tokens = next_tokens(worker_.arena(), std::move(spans));
  LaneContext ctx = context(tokens);
  std::vector<std::vector<int32_t>> drafts(texts.size());
  Task<void> task = draft_into(drafts, ctx, tokens, texts, choose);
  worker_.run(task);
  return drafts;
}

// A module reads the token that lies further on than its rows by one more than for the module before: behind the known
// ones, what those before it have drafted. Rows that stood on drafts are computed again when the tokens are known, which is
// why tails are kept.
Task<void> Decoder::draft_into(std::vector<std::vector<int32_t>>& drafts, LaneContext& ctx, NextTokens tokens,
                               const std::vector<std::span<const int32_t>>& texts, const Choose& choose) {
  const Stage& stage = worker_.model().last_stage();
  const auto num_layers = static_cast<size_t>(worker_.model().config().num_hidden_layers);
  Tensor h = rows_of(tokens);
  for (int module = 0; module < num_drafts(); ++module) {
    const Tensor ids = ctx.arena.take_host("decode", DType::i32, {h.dim(0)});
    std::vector<int32_t> last_rows;
    int64_t row = 0;
    for (size_t slot = 0; slot < texts.size(); ++slot) {
      const auto& [first, count] = tokens.spans[slot];
      for (int64_t i = 0; i < count; ++i, ++row) {
        ids.data<int32_t>()[row] = token_at(texts[slot], drafts[slot], first + i + module + 1);
      }
      if (count > 0) last_rows.push_back(static_cast<int32_t>(row - 1));
    }
    Task<Tensor> decode = stage.decode_mtp(ctx, module, ids, h, tokens, caches_[num_layers + module]);
    const Tensor y = co_await decode;
    const auto num_texts = static_cast<int64_t>(last_rows.size());
    const Tensor last = take(num_texts);
    ctx.kernels.gather_rows(y, Tensor(last_rows.data(), DType::i32, {num_texts}), Tensor(), last);
    const Tensor logits = host_side(ctx, "decode", stage.mtp_logits(ctx, module, last));
    Request computed = ctx.kernels.launched();
    co_await computed;
    int64_t at = 0;
    for (size_t slot = 0; slot < texts.size(); ++slot) {
      if (tokens.spans[slot].count == 0) continue;
      const auto position = static_cast<int64_t>(texts[slot].size()) + module;
      drafts[slot].push_back(choose(slot, row_of(logits, at++), position));
    }
    h = y;
  }
}

// The hidden rows of these tokens, tails first; tails become what the next call needs of them.
Tensor Decoder::rows_of(const NextTokens& tokens) {
  const Tensor rows =
      worker_.arena().take_host("decode", DType::f32, {tokens.positions.dim(0), worker_.model().config().hidden_size});
  float* to = rows.data<float>();
  const int64_t width = rows.dim(1);
  for (size_t slot = 0; slot < slots_.size(); ++slot) {
    const auto& [first, count] = tokens.spans[slot];
    if (count == 0) continue;
    std::vector<float>& tail = slots_[slot].tail;
    const int64_t num_new = count - (slots_[slot].first - first);
    to = std::ranges::copy(tail, to).out;
    const Tensor fresh = slots_[slot].hidden.rows(0, num_new);
    worker_.kernels().memory().read(reinterpret_cast<std::byte*>(to), fresh.raw(), fresh.bytes());
    to += num_new * width;
    tail.assign(to - std::min<int64_t>(num_drafts() - 1, count) * width, to);
  }
  return rows;
}

}  // namespace cadre
