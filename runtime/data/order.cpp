// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/order.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre {
namespace {

// Four rounds give a strong pseudo-random permutation (Luby and Rackoff 1988) for large halves; small ones need more.
constexpr uint64_t kRounds = 8;

}  // namespace

Permutation::Permutation(int64_t size, uint64_t seed, int64_t epoch)
    : size_(static_cast<uint64_t>(size)), seed_(seed), epoch_(static_cast<uint64_t>(epoch)) {
  CADRE_ASSERT(size >= 1);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(size_ - 1)) + 1) / 2);
}

uint64_t Permutation::feistel(uint64_t value) const {
  const Random random(seed_, "data order", epoch_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_;
  uint64_t right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    const uint64_t mixed = left ^ (random.bits((round << 32) | right) & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits_) | right;
}

int64_t Permutation::operator()(int64_t index) const {
  auto value = static_cast<uint64_t>(index);
  do {
    value = feistel(value);
  } while (value >= size_);
  return static_cast<int64_t>(value);
}

BatchReader::BatchReader(TokenSource tokens, int64_t sequence_length, int64_t batch, uint64_t seed)
    : tokens_(std::move(tokens)),
      sequence_length_(sequence_length),
      batch_(batch),
      seed_(seed),
      num_windows_((tokens_.num_tokens() - 1) / sequence_length) {
  CADRE_CHECK(num_windows_ >= 1,
              fmt::format("{}: {} tokens, allowed: at least data.sequence_length + 1 = {}", tokens_.name(),
                          tokens_.num_tokens(), sequence_length + 1),
              "give more data or shorter sequences");
}

DataPosition BatchReader::begin() const {
  return {.seed = seed_, .sequence_length = sequence_length_, .num_tokens = tokens_.num_tokens()};
}

DataPosition BatchReader::advance(const DataPosition& from, int64_t num_windows) const {
  DataPosition to = from;
  to.window += num_windows;
  if (to.window < num_windows_) return to;
  to.pass += to.window / num_windows_;
  to.window %= num_windows_;
  to.seed = seed_;
  return to;
}

int64_t BatchReader::window(const DataPosition& from, int64_t index) const {
  const DataPosition at = advance(from, index);
  return Permutation(num_windows_, at.seed, at.pass)(at.window);
}

int64_t BatchReader::window(int64_t step, int64_t index) const {
  return window(advance(begin(), step * batch_), index);
}

void BatchReader::fill_batch(int64_t step, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                             std::span<int32_t> targets) const {
  fill_batch(advance(begin(), step * batch_), first_sequence, count, tokens, targets);
}

void BatchReader::fill_batch(const DataPosition& from, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                             std::span<int32_t> targets) const {
  CADRE_ASSERT(first_sequence >= 0 && count >= 0 && first_sequence + count <= batch_);
  const auto length = static_cast<size_t>(sequence_length_);
  CADRE_ASSERT(tokens.size() == static_cast<size_t>(count) * length && targets.size() == tokens.size());
  std::vector<int32_t> ids(length + 1);
  for (int64_t i = 0; i < count; ++i) {
    tokens_.read(window(from, first_sequence + i) * sequence_length_, ids);
    const size_t row = static_cast<size_t>(i) * length;
    std::copy_n(ids.begin(), length, tokens.begin() + static_cast<ptrdiff_t>(row));
    std::copy_n(ids.begin() + 1, length, targets.begin() + static_cast<ptrdiff_t>(row));
  }
}

ResumedPosition resume_position(const DataPosition& saved, const BatchReader& reader, uint64_t fingerprint) {
  DataPosition fresh = reader.begin();
  fresh.fingerprint = fingerprint;
  fresh.pass = saved.window > 0 ? saved.pass + 1 : saved.pass;
  const std::string before = fmt::format("after {} windows of pass {}", saved.window, saved.pass + 1);
  // A checkpoint of an earlier version knows no fingerprint.
  const bool same_tokens = saved.fingerprint == 0 || saved.fingerprint == fingerprint;
  if (saved.num_tokens != fresh.num_tokens || !same_tokens) {
    return {fresh,
            fmt::format("the training data is not what the checkpoint was trained on: {} tokens, was {}{}; a new pass "
                        "over it begins, {}",
                        fresh.num_tokens, saved.num_tokens,
                        saved.num_tokens == fresh.num_tokens ? " with other content" : "", before)};
  }
  if (saved.sequence_length != fresh.sequence_length) {
    const std::string text = fmt::format("data.sequence_length = {}, was {}: the data is cut in other windows",
                                         fresh.sequence_length, saved.sequence_length);
    if (saved.window == 0) return {fresh, text};
    return {fresh, fmt::format("{}; a new pass over it begins, {}: windows that pass did not reach wait for "
                               "their turn in the new one",
                               text, before)};
  }
  DataPosition position = saved;
  position.fingerprint = fingerprint;
  if (saved.seed == fresh.seed) return {position, ""};
  if (saved.window == 0) return {fresh, ""};
  return {position, fmt::format("the order of data of seed {} stays until the end of this pass, {} of {} windows",
                                saved.seed, before, reader.num_windows())};
}

}  // namespace cadre
