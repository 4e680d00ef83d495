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

// Keeps the order of parts in a round apart from the order of windows in an epoch.
constexpr uint64_t kRoundSeed = 0x9e3779b97f4a7c15;

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

int64_t num_windows(const DataPart& part, int64_t sequence_length) {
  return (part.tokens.num_tokens() - 1) / sequence_length;
}

int64_t num_tokens(const std::vector<DataPart>& parts) {
  int64_t sum = 0;
  for (const DataPart& part : parts) sum += part.tokens.num_tokens();
  return sum;
}

uint64_t fingerprint(const std::vector<DataPart>& parts) {
  const auto of_part = [](const DataPart& part) {
    const uint64_t tokens = part.tokens.fingerprint();
    return part.marks == nullptr ? tokens : hash_name(fmt::format("{:x} {:x}", tokens, fingerprint(*part.marks)));
  };
  if (parts.size() == 1 && parts.front().task == kNoTask) return of_part(parts.front());
  uint64_t hash = 0;
  for (const DataPart& part : parts) {
    hash = hash_name(fmt::format("{:x} {:x} {} {}", hash, of_part(part), part.task, part.weight));
  }
  return hash;
}

// One part alone keeps its weight of 1, with which rounds change nothing.
std::vector<DataPart> each_window_once(std::vector<DataPart> parts, int64_t sequence_length) {
  if (parts.size() == 1) return parts;
  for (DataPart& part : parts) part.weight = num_windows(part, sequence_length);
  return parts;
}

BatchReader::BatchReader(std::vector<DataPart> parts, int64_t sequence_length, int64_t batch, uint64_t seed)
    : parts_(std::move(parts)), sequence_length_(sequence_length), batch_(batch), seed_(seed) {
  for (const DataPart& part : parts_) {
    total_weight_ += part.weight;
    num_windows_ += cadre::num_windows(part, sequence_length);
    CADRE_CHECK(cadre::num_windows(part, sequence_length) >= 1,
                fmt::format("{}: {} tokens, allowed: at least data.sequence_length + 1 = {}", part.tokens.name(),
                            part.tokens.num_tokens(), sequence_length + 1),
                "give more data or shorter sequences");
  }
}

BatchReader::BatchReader(TokenSource tokens, int64_t sequence_length, int64_t batch, uint64_t seed)
    : BatchReader(std::vector<DataPart>{{std::move(tokens)}}, sequence_length, batch, seed) {}

bool BatchReader::has_tasks() const {
  return std::ranges::any_of(parts_, [](const DataPart& part) { return part.task != kNoTask; });
}

bool BatchReader::has_marks() const {
  return std::ranges::any_of(parts_, [](const DataPart& part) { return part.is_marked(); });
}

DataPosition BatchReader::begin() const {
  return {.seed = seed_, .sequence_length = sequence_length_, .num_tokens = num_tokens(parts_)};
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

BatchReader::Place BatchReader::place(const DataPosition& from, int64_t index) const {
  const DataPosition at = advance(from, index);
  const int64_t sequence = at.pass * num_windows_ + at.window;
  const int64_t round = sequence / total_weight_;
  int64_t turn = Permutation(total_weight_, at.seed ^ kRoundSeed, round)(sequence % total_weight_);
  size_t part = 0;
  for (; turn >= parts_[part].weight; ++part) turn -= parts_[part].weight;
  const int64_t drawn = round * parts_[part].weight + turn;  // from this part before
  const int64_t windows = cadre::num_windows(parts_[part], sequence_length_);
  return {part, Permutation(windows, at.seed, drawn / windows)(drawn % windows)};
}

void BatchReader::fill_batch(int64_t step, int64_t first_sequence, int64_t count, std::span<int32_t> tokens,
                             std::span<int32_t> targets) const {
  fill_batch(at_step(step), first_sequence, count, tokens, targets);
}

double BatchReader::fill_batch(const DataPosition& from, int64_t first_sequence, int64_t count,
                               std::span<int32_t> tokens, std::span<int32_t> targets, BatchMarks* marks) const {
  CADRE_ASSERT(first_sequence >= 0 && count >= 0 && first_sequence + count <= batch_);
  const auto length = static_cast<size_t>(sequence_length_);
  CADRE_ASSERT(tokens.size() == static_cast<size_t>(count) * length && targets.size() == tokens.size());
  std::vector<int32_t> ids(length + 1);
  BatchMarks unwanted;
  double weight = 0.0;
  for (int64_t i = 0; i < count; ++i) {
    const Place at = place(from, first_sequence + i);
    const DataPart& part = parts_[at.part];
    part.tokens.read(at.window * sequence_length_, ids);
    const size_t row = static_cast<size_t>(i) * length;
    std::copy_n(ids.begin(), length, tokens.begin() + static_cast<ptrdiff_t>(row));
    std::copy_n(ids.begin() + 1, length, targets.begin() + static_cast<ptrdiff_t>(row));
    if (!has_marks()) continue;
    weight += mark_window(part.marking(), at.window * sequence_length_, ids, targets.subspan(row, length),
                          marks ? *marks : unwanted);
  }
  return has_marks() ? weight : static_cast<double>(count * sequence_length_);
}

double BatchReader::weight_of_batch(const DataPosition& from, int64_t count) const {
  if (!has_marks()) return static_cast<double>(count * sequence_length_);
  std::vector<int32_t> tokens(static_cast<size_t>(sequence_length_));
  std::vector<int32_t> targets(tokens.size());
  double weight = 0.0;
  for (int64_t i = 0; i < count; ++i) weight += fill_batch(from, i, 1, tokens, targets);
  return weight;
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
