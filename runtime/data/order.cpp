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

int64_t BatchReader::window(int64_t step, int64_t index) const {
  const int64_t sequence = step * batch_ + index;
  return Permutation(num_windows_, seed_, sequence / num_windows_)(sequence % num_windows_);
}

void BatchReader::fill_batch(int64_t step, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                             std::span<int32_t> targets) const {
  CADRE_ASSERT(first_sequence >= 0 && count >= 0 && first_sequence + count <= batch_);
  const auto length = static_cast<size_t>(sequence_length_);
  CADRE_ASSERT(tokens.size() == static_cast<size_t>(count) * length && targets.size() == tokens.size());
  std::vector<int32_t> ids(length + 1);
  for (int64_t i = 0; i < count; ++i) {
    tokens_.read(window(step, first_sequence + i) * sequence_length_, ids);
    const size_t row = static_cast<size_t>(i) * length;
    std::copy_n(ids.begin(), length, tokens.begin() + static_cast<ptrdiff_t>(row));
    std::copy_n(ids.begin() + 1, length, targets.begin() + static_cast<ptrdiff_t>(row));
  }
}

}  // namespace cadre
