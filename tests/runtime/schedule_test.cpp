// SPDX-License-Identifier: Apache-2.0
// The schedules against their published lists, bubbles and memory, and the fallbacks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <set>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/verify.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre::schedule_test {
namespace {

// All costs of a test are multiples of 0.1 that add up to less than 1000.
constexpr double kRounding = 1e-9;

int peak(const std::vector<int>& of_ranks) { return *std::ranges::max_element(of_ranks); }

long count(const OpList& list, OpKind kind) { return std::ranges::count(list, kind, &Op::kind); }

void expect_idle(const Simulation& simulation, const std::vector<double>& idle) {
  ASSERT_EQ(simulation.idle.size(), idle.size());
  for (size_t rank = 0; rank < idle.size(); ++rank) {
    EXPECT_NEAR(simulation.idle[rank], idle[rank], kRounding) << "rank " << rank;
  }
}

struct Row {
  const char* schedule;
  int ranks;
  int micro_batches;
  double makespan;
  double bubble;
  int peak_live;
};

// Unit costs: F = Bi = W = 1, B = 2, F&B = 3.
constexpr Row kRows[] = {
    {"dualpipe", 2, 4, 12, 0, 3},
    {"dualpipe", 4, 8, 26, 2, 5},
    {"dualpipe", 4, 20, 62, 2, 5},
    {"dualpipe", 8, 16, 54, 6, 9},
    {"dualpipe", 8, 20, 66, 6, 9},
    {"dualpipe", 8, 40, 126, 6, 9},
    {"dualpipe", 16, 40, 134, 14, 17},
    {"dualpipev", 1, 2, 12, 0, 3},
    {"dualpipev", 2, 4, 26, 2, 5},
    {"dualpipev", 4, 10, 66, 6, 9},
    {"dualpipev", 4, 20, 126, 6, 9},
    {"dualpipev", 8, 20, 134, 14, 17},
    // The other schedules of the same comparison: 3 M + (R-1)(F+B) and 3 M + (R-1)(F+B-2W).
    {"1f1b", 2, 4, 15, 3, 2},
    {"1f1b", 4, 20, 69, 9, 4},
    {"1f1b", 8, 20, 81, 21, 8},
    {"1f1b", 16, 40, 165, 45, 16},
    {"zb1p", 2, 4, 13, 1, 2},
    {"zb1p", 4, 8, 27, 3, 4},
    {"zb1p", 8, 40, 127, 7, 8},
    {"zb1p", 16, 40, 135, 15, 16},
    {"pair", 1, 8, 24, 0, 2},
};

TEST(Schedule, HasTheMakespanBubbleAndMemoryOfItsFormula) {
  for (const Row& row : kRows) {
    SCOPED_TRACE(fmt::format("{} R{} M{}", row.schedule, row.ranks, row.micro_batches));
    const Program program = make_program(row.schedule, row.ranks, row.micro_batches);
    EXPECT_EQ(program.name, row.schedule);
    EXPECT_EQ(program.note, "");
    EXPECT_EQ(formula_bubble(program, Cost()), row.bubble);
    for (const Sends sends : {Sends::eager, Sends::rendezvous}) {
      const Simulation simulation = simulate(program, Cost(), sends);
      EXPECT_NEAR(simulation.makespan, row.makespan, kRounding);
      expect_idle(simulation, std::vector<double>(static_cast<size_t>(row.ranks), row.bubble));
    }
    EXPECT_EQ(peak(verify(program).peak_live_forwards), row.peak_live);
  }
}

TEST(Schedule, FormulaIsNotTheIdleTimeAtOtherCosts) {
  const Program program = make_program("dualpipe", 8, 20);
  const Cost cheap_pair = {.overlapped = 2.4};
  const Simulation faster = simulate(program, cheap_pair);
  EXPECT_NEAR(faster.makespan, 57.6, kRounding);
  expect_idle(faster, {3, 3.6, 4.2, 4.2, 4.2, 4.2, 3.6, 3});
  EXPECT_NEAR(formula_bubble(program, cheap_pair), 4.2, kRounding);

  const Cost uneven = {.backward = 2.2, .backward_input = 1.2, .overlapped = 2.6};
  const Simulation slower = simulate(program, uneven);
  EXPECT_NEAR(slower.makespan, 62.2, kRounding);
  expect_idle(slower, {3.6, 4.2, 4.8, 4.8, 4.8, 4.8, 4.2, 3.6});
  EXPECT_NEAR(formula_bubble(program, uneven), 5.4, kRounding);
}

TEST(Schedule, FormulaIsNeverBelowZero) {
  // (R-1)(F&B+B-3W) = 3 (3 + 2 - 5.4), a measured weight gradient dearer than the formula allows.
  EXPECT_EQ(formula_bubble(make_program("dualpipe", 8, 20), {.backward_weight = 1.8, .overlapped = 3}), 0);
}

// PP = 8, 20 micro-batches: ten from each end.
const std::vector<std::string> kDualPipe8 = {
    "Fa0 Fa1 Fa2 Fa3 Fa4 Fa5 Fa6 Fb0 bb0 W Fb1 bb1 W Fb2 bb2 W Fb3 {Fa7&Bb3} {Fb4&Ba0} {Fa8&Bb4} {Fb5&Ba1} {Fa9&Bb5} "
    "{Fb6&Ba2} Bb6 {Fb7&Ba3} Bb7 {Fb8&Ba4} Bb8 {Fb9&Ba5} Bb9 ba6 W ba7 W ba8 W ba9 W",
    "Fa0 Fa1 Fa2 Fa3 Fa4 Fb0 Fa5 Fb1 bb0 W Fb2 bb1 W Fb3 {Fa6&Bb2} {Fb4&Ba0} {Fa7&Bb3} {Fb5&Ba1} {Fa8&Bb4} {Fb6&Ba2} "
    "{Fa9&Bb5} {Fb7&Ba3} Bb6 {Fb8&Ba4} Bb7 {Fb9&Ba5} Bb8 Ba6 bb9 ba7 W ba8 W ba9 W W",
    "Fa0 Fa1 Fa2 Fb0 Fa3 Fb1 Fa4 Fb2 bb0 W Fb3 {Fa5&Bb1} {Fb4&Ba0} {Fa6&Bb2} {Fb5&Ba1} {Fa7&Bb3} {Fb6&Ba2} {Fa8&Bb4} "
    "{Fb7&Ba3} {Fa9&Bb5} {Fb8&Ba4} Bb6 {Fb9&Ba5} Bb7 Ba6 Bb8 ba7 bb9 ba8 W ba9 W W W",
    "Fa0 Fb0 Fa1 Fb1 Fa2 Fb2 Fa3 Fb3 Fa4 Bb0 {Fb4&Ba0} {Fa5&Bb1} {Fb5&Ba1} {Fa6&Bb2} {Fb6&Ba2} {Fa7&Bb3} {Fb7&Ba3} "
    "{Fa8&Bb4} {Fb8&Ba4} {Fa9&Bb5} {Fb9&Ba5} Bb6 Ba6 Bb7 Ba7 bb8 ba8 bb9 ba9 W W W W"};

// The letter in front of each number.
std::string swapped(std::string list) {
  for (size_t i = 0; i + 1 < list.size(); ++i) {
    if (std::isdigit(static_cast<unsigned char>(list[i + 1])) == 0) continue;
    if (list[i] == 'a') {
      list[i] = 'b';
    } else if (list[i] == 'b') {
      list[i] = 'a';
    }
  }
  return list;
}

TEST(Schedule, DualPipeIsThePublishedList) {
  std::string lists;
  for (size_t rank = 0; rank < 8; ++rank) {
    lists += fmt::format("rank{} {}\n", rank, rank < 4 ? kDualPipe8[rank] : swapped(kDualPipe8[7 - rank]));
  }
  EXPECT_EQ(lists_text(make_program("dualpipe", 8, 20)), lists);
}

TEST(Schedule, DualPipeVOnHalfOfTheRanksIsTheSameList) {
  std::string lists;
  for (size_t rank = 0; rank < 4; ++rank) lists += fmt::format("rank{} {}\n", rank, kDualPipe8[rank]);
  EXPECT_EQ(lists_text(make_program("dualpipev", 4, 10)), lists);
}

TEST(Schedule, PrintsTheShortOnes) {
  EXPECT_EQ(lists_text(make_program("1f1b", 3, 4)),
            "rank0 F0 F1 F2 B0 F3 B1 B2 B3\nrank1 F0 F1 B0 F2 B1 F3 B2 B3\nrank2 F0 B0 F1 B1 F2 B2 F3 B3\n");
  EXPECT_EQ(lists_text(make_program("zb1p", 2, 3)), "rank0 F0 F1 b0 W F2 b1 W b2 W\nrank1 F0 b0 F1 b1 W F2 b2 W W\n");
  EXPECT_EQ(lists_text(make_program("pair", 1, 3)), "rank0 F0 {F1&B0} {F2&B1} B2\n");
  EXPECT_EQ(lists_text(make_program("pair", 1, 1)), "rank0 F0 B0\n");
  EXPECT_EQ(lists_text(make_program("pair", 1, 4, 2)), "rank0 F0+F1 {F2&B0} {F3&B1} B2+B3\n");
  EXPECT_EQ(lists_text(make_program("pair", 1, 2, 5)), "rank0 F0+F1 B0+B1\n");
  EXPECT_EQ(verify(make_program("pair", 1, 8, 3)).peak_live_forwards, std::vector<int>{4});
}

TEST(Schedule, NamesItsMessagesByWhatTheyFeed) {
  const Program program = make_program("1f1b", 2, 1);
  std::vector<std::string> names;
  for (const Op& op : program.ops[1]) names.push_back(name_of(program, op));
  EXPECT_EQ(names, (std::vector<std::string>{"receive for F0 from rank 0", "F0", "B0", "send for B0 to rank 0"}));
  names.clear();
  for (const Op& op : program.ops[0]) names.push_back(name_of(program, op));
  EXPECT_EQ(names, (std::vector<std::string>{"F0", "receive for B0 from rank 1", "send for F0 to rank 1", "B0"}));
}

// Steps 3, 7 and 8 pop 2 (H - hr - 1) + hr + 1 weight gradients of the rank hr from its end, H from the middle.
TEST(Schedule, DualPipeSplitsWhatStepsThreeSixAndSevenDo) {
  for (const int half : {1, 2, 4, 8}) {
    const Program program = make_program("dualpipe", 2 * half, 4 * half + 6);
    const Footprint footprint = verify(program);
    for (int rank = 0; rank < 2 * half; ++rank) {
      const int from_end = std::min(rank, 2 * half - 1 - rank);
      const OpList& list = program.ops[static_cast<size_t>(rank)];
      EXPECT_EQ(count(list, OpKind::backward_weight), 2 * (half - from_end - 1) + from_end + 1);
      EXPECT_EQ(count(list, OpKind::backward_weight), count(list, OpKind::backward_input));
      EXPECT_EQ(footprint.peak_deferred_weights[static_cast<size_t>(rank)], from_end + 1);
    }
  }
}

TEST(Schedule, MemoryIsThatOfTheFormulaOnEveryRank) {
  EXPECT_EQ(verify(make_program("dualpipe", 8, 16)).peak_live_forwards, std::vector<int>(8, 9));
  EXPECT_EQ(verify(make_program("dualpipev", 4, 8)).peak_live_forwards, std::vector<int>(4, 9));
  EXPECT_EQ(verify(make_program("zb1p", 8, 16)).peak_live_forwards, std::vector<int>(8, 8));
  EXPECT_EQ(verify(make_program("1f1b", 8, 16)).peak_live_forwards, (std::vector<int>{8, 7, 6, 5, 4, 3, 2, 1}));
}

TEST(Schedule, FallsBackAndSaysWhy) {
  struct Case {
    const char* asked;
    int ranks, micro_batches;
    const char* given;
    const char* why;
  };
  for (const Case& c : std::vector<Case>{{"dualpipe", 3, 12, "zb1p", "even number of ranks"},
                                         {"dualpipe", 4, 9, "zb1p", "even number of micro-batches"},
                                         {"dualpipe", 4, 6, "zb1p", "at least 8 micro-batches"},
                                         {"dualpipe", 1, 6, "pair", "even number of ranks"},
                                         {"dualpipev", 4, 7, "zb1p", "at least 8 micro-batches"},
                                         {"dualpipev", 1, 1, "pair", "at least 2 micro-batches"},
                                         {"pair", 2, 4, "zb1p", "1 rank"}}) {
    SCOPED_TRACE(fmt::format("{} R{} M{}", c.asked, c.ranks, c.micro_batches));
    const Program program = make_program(c.asked, c.ranks, c.micro_batches);
    EXPECT_EQ(program.name, c.given);
    EXPECT_NE(program.note.find(c.asked), std::string::npos) << program.note;
    EXPECT_NE(program.note.find(c.why), std::string::npos) << program.note;
    EXPECT_NE(program.note.find(c.given), std::string::npos) << program.note;
    verify(program);
  }
  EXPECT_THROW(make_program("1f1b", 0, 4), Error);
  EXPECT_THROW(make_program("zb1p", 4, 0), Error);
  EXPECT_THROW(make_program("2f2b", 4, 4), Error);
}

TEST(Schedule, IsVerifiedAtEverySize) {
  int num_programs = 0;
  for (const std::string& name : schedule_names()) {
    for (int ranks = 1; ranks <= 12; ++ranks) {
      for (int micro_batches = 1; micro_batches <= 40; ++micro_batches) {
        const Program program = make_program(name, ranks, micro_batches);
        const Footprint footprint = verify(program);
        const int limit = program.name == "dualpipe" || program.name == "pair" ? ranks + 1
                          : program.name == "dualpipev"                        ? 2 * ranks + 1
                                                                               : ranks;
        ASSERT_LE(peak(footprint.peak_live_forwards), limit) << name << " R" << ranks << " M" << micro_batches;
        // Sends that wait for their receive cost no time at unit costs.
        ASSERT_EQ(simulate(program, Cost(), Sends::eager).makespan,
                  simulate(program, Cost(), Sends::rendezvous).makespan)
            << name << " R" << ranks << " M" << micro_batches;
        ++num_programs;
      }
    }
  }
  EXPECT_EQ(num_programs, 5 * 12 * 40);
}

TEST(Schedule, IsVerifiedForLargeMachines) {
  for (const std::string& name : schedule_names()) {
    const Program program = make_program(name, 64, 256);
    verify(program);
    expect_idle(simulate(program, Cost()), std::vector<double>(64, formula_bubble(program, Cost())));
  }
}

TEST(Schedule, GivesEveryMessageATagOfItsOwn) {
  for (const char* name : {"zb1p", "dualpipe", "dualpipev"}) {
    const Program program = make_program(name, 4, 8);
    std::set<int> sent;
    size_t num_sends = 0;
    for (const OpList& list : program.ops) {
      for (const Op& op : list) {
        if (op.kind != OpKind::send) continue;
        ++num_sends;
        sent.insert(index_of(program, op.feeds));
      }
    }
    EXPECT_GT(num_sends, 0U);
    EXPECT_EQ(sent.size(), num_sends);
    EXPECT_GE(*sent.begin(), 0);
    EXPECT_LT(*sent.rbegin(), num_works(program));
  }
}

}  // namespace
}  // namespace cadre::schedule_test
