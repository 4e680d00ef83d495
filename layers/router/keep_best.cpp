// SPDX-License-Identifier: Apache-2.0
#include "layers/router/keep_best.hpp"

#include <algorithm>
#include <bit>

#include "layers/router/routing.hpp"

namespace cadre {
namespace {

constexpr int kDigits = 16;  // bytes of (key, ~token), the most significant first
constexpr size_t kDigitValues = 256;

size_t digit_of(const Candidate& candidate, int digit) {
  const uint64_t word = digit < 8 ? candidate.key : ~static_cast<uint64_t>(candidate.token);
  return (word >> (8 * (7 - digit % 8))) & 0xff;
}

enum class State : uint8_t { open, kept, dropped };

// The columns in which it is still open where to cut, in ascending order: the same on all ranks.
struct Search {
  std::vector<int32_t> columns;
  std::vector<int32_t> place_of;  // [all columns] in `columns`, or -1
  std::vector<int64_t> room;      // of each open column

  void index(size_t num_columns) {
    place_of.assign(num_columns, -1);
    for (size_t i = 0; i < columns.size(); ++i) place_of[static_cast<size_t>(columns[i])] = static_cast<int32_t>(i);
  }
};

// Where the digits of one column are cut: larger ones are kept, and equal ones are open, unless all of them fit.
struct Cut {
  size_t digit = 0;
  int64_t room = 0;  // for those with that digit
  bool all_fit = false;
};

Cut cut_of(std::span<const int64_t> counts, int64_t room) {
  size_t digit = kDigitValues;
  while (digit-- > 0) {
    if (counts[digit] >= room) return {digit, room, counts[digit] == room};
    room -= counts[digit];
  }
  return {0, room, true};
}

}  // namespace

uint64_t sort_key(double number) {
  const auto bits = std::bit_cast<uint64_t>(number + 0.0);  // -0 is 0
  constexpr uint64_t kSign = uint64_t{1} << 63;
  return (bits & kSign) != 0 ? ~bits : bits | kSign;
}

Task<std::vector<uint8_t>> keep_best(LaneContext& ctx, std::vector<Candidate> candidates, std::vector<int64_t> limits) {
  std::vector<State> states(candidates.size(), State::open);
  std::vector<int64_t> mine(limits.size(), 0);
  for (const Candidate& candidate : candidates) ++mine[static_cast<size_t>(candidate.column)];
  Task<std::vector<int64_t>> counting = sum_over_ranks(ctx, std::move(mine));
  const std::vector<int64_t> totals = co_await counting;

  Search search;
  for (size_t column = 0; column < limits.size(); ++column) {
    if (totals[column] <= limits[column] || limits[column] <= 0) continue;
    search.columns.push_back(static_cast<int32_t>(column));
    search.room.push_back(limits[column]);
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    const auto column = static_cast<size_t>(candidates[i].column);
    if (limits[column] <= 0) states[i] = State::dropped;
    if (limits[column] > 0 && totals[column] <= limits[column]) states[i] = State::kept;
  }

  for (int digit = 0; digit < kDigits && !search.columns.empty(); ++digit) {
    search.index(limits.size());
    std::vector<int64_t> histogram(search.columns.size() * kDigitValues, 0);
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (states[i] != State::open) continue;
      const auto place = static_cast<size_t>(search.place_of[static_cast<size_t>(candidates[i].column)]);
      ++histogram[place * kDigitValues + digit_of(candidates[i], digit)];
    }
    Task<std::vector<int64_t>> summing = sum_over_ranks(ctx, std::move(histogram));
    const std::vector<int64_t> counts = co_await summing;

    std::vector<Cut> cuts;
    Search next;
    for (size_t place = 0; place < search.columns.size(); ++place) {
      cuts.push_back(cut_of(std::span(counts).subspan(place * kDigitValues, kDigitValues), search.room[place]));
      if (cuts.back().all_fit) continue;
      next.columns.push_back(search.columns[place]);
      next.room.push_back(cuts.back().room);
    }
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (states[i] != State::open) continue;
      const Cut& cut = cuts[static_cast<size_t>(search.place_of[static_cast<size_t>(candidates[i].column)])];
      const size_t value = digit_of(candidates[i], digit);
      if (value > cut.digit || (value == cut.digit && cut.all_fit)) states[i] = State::kept;
      if (value < cut.digit) states[i] = State::dropped;
    }
    search = std::move(next);
  }

  std::vector<uint8_t> kept(candidates.size());
  std::ranges::transform(states, kept.begin(), [](State state) { return state == State::kept ? 1 : 0; });
  co_return kept;
}

}  // namespace cadre
