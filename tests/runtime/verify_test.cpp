// SPDX-License-Identifier: Apache-2.0
// The verifier against broken programs: each kind of break on its own, then every drop, repeat and swap of a small one
// against a second opinion.
#include "runtime/schedule/verify.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <ranges>
#include <set>
#include <string>
#include <tuple>

#include "comm/base/check.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre::verify_test {
namespace {

// What verify says against the program; empty when it finds nothing.
std::string refusal(const Program& program) {
  try {
    verify(program);
  } catch (const Error& error) {
    return error.text();
  }
  return "";
}

size_t position_of(const Program& program, size_t rank, const std::string& name) {
  for (size_t i = 0; i < program.ops[rank].size(); ++i) {
    if (name_of(program, program.ops[rank][i]) == name) return i;
  }
  ADD_FAILURE() << "rank " << rank << " has no " << name;
  return 0;
}

struct Editor {
  Program program;
  size_t rank;

  OpList& list() { return program.ops[rank]; }
  size_t at(const std::string& name) const { return position_of(program, rank, name); }
  Op& op(const std::string& name) { return list()[at(name)]; }
  void drop(const std::string& name) { list().erase(list().begin() + static_cast<std::ptrdiff_t>(at(name))); }
  void repeat(const std::string& name) {
    const Op copy = op(name);
    list().insert(list().begin() + static_cast<std::ptrdiff_t>(at(name)), copy);
  }
  void swap(const std::string& a, const std::string& b) { std::swap(op(a), op(b)); }
};

struct Break {
  const char* what;
  std::function<void(Editor&)> apply;
  std::vector<std::string> says;
};

void expect_refused(const char* schedule, int ranks, int micro_batches, size_t rank, const std::vector<Break>& breaks) {
  for (const Break& broken : breaks) {
    SCOPED_TRACE(broken.what);
    Editor editor = {make_program(schedule, ranks, micro_batches), rank};
    ASSERT_EQ(refusal(editor.program), "");
    broken.apply(editor);
    const std::string text = refusal(editor.program);
    EXPECT_NE(text, "");
    for (const std::string& part : broken.says) EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

TEST(Verify, RefusesEachKindOfBreakAndNamesTheOp) {
  // rank 1 of 4 in DualPipe: Fa0 Fb0 Fa1 Fb1 Fa2 Bb0 {Fb2&Ba0} ... with 8 micro-batches, 4 from each end.
  const std::string who = "dualpipe: rank 1, op ";
  expect_refused(
      "dualpipe", 4, 8, 1,
      {{"forward dropped", [](Editor& e) { e.drop("Fa1"); }, {who, "(send for Fa1 to rank 2)", "before Fa1"}},
       {"overlapped dropped", [](Editor& e) { e.drop("{Fb2&Ba0}"); }, {who, "(send for Fb2 to rank 0)", "Fb2"}},
       {"weight gradient dropped", [](Editor& e) { e.drop("Wa3"); }, {who, "(ba3)", "weight gradient"}},
       {"receive dropped",
        [](Editor& e) { e.drop("receive for Fa1 from rank 0"); },
        {who, "(Fa1)", "before the receive"}},
       {"send dropped",
        [](Editor& e) { e.drop("send for Fa1 to rank 2"); },
        {"dualpipe: rank 2, op ", "(receive for Fa1 from rank 1)", "never sends"}},
       {"forward twice", [](Editor& e) { e.repeat("Fa1"); }, {who, "(Fa1)", "again"}},
       {"weight gradient twice", [](Editor& e) { e.repeat("Wa3"); }, {who, "(Wa3)", "again"}},
       {"send twice",
        [](Editor& e) { e.repeat("send for Fa1 to rank 2"); },
        {who, "(send for Fa1 to rank 2)", "again"}},
       {"receive twice",
        [](Editor& e) { e.repeat("receive for Fa1 from rank 0"); },
        {who, "(receive for Fa1 from rank 0)", "again"}},
       {"backward before its forward",
        [](Editor& e) { e.swap("Fb0", "Bb0"); },
        {who, "(Bb0)", "before its forward Fb0"}},
       {"weight before input gradient", [](Editor& e) { e.swap("Wa3", "ba3"); }, {who, "(Wa3)", "no input gradient"}},
       {"weight gradient of a full backward",
        [](Editor& e) {
          e.list().push_back({OpKind::backward_weight, e.op("Bb0").chunk});
        },
        {who, "(Wb0)", "no input gradient"}},
       {"wrong peer",
        [](Editor& e) { e.op("send for Fa1 to rank 2").peer = 3; },
        {who, "(send for Fa1 to rank 3)", "wrong peer", "rank 2"}},
       {"receive from the wrong peer",
        [](Editor& e) { e.op("receive for Fa1 from rank 0").peer = 2; },
        {who, "(receive for Fa1 from rank 2)", "wrong peer", "rank 0"}},
       {"tag of another micro-batch",
        [](Editor& e) { e.op("send for Fa1 to rank 2").feeds.chunk.micro_batch = 2; },
        {who, "(send for Fa2 to rank 2)", "before Fa2"}},
       {"tag of another stage",
        [](Editor& e) { e.op("receive for Fa1 from rank 0").feeds.chunk.stage = 2; },
        {who, "(receive for Fa1 from rank 0)", "not for this rank"}},
       {"tag of the other pass",
        [](Editor& e) { e.op("send for Fa1 to rank 2").feeds.pass = Pass::backward; },
        {who, "(send for Ba1 to rank 2)", "not for this rank"}},
       {"stage of another rank",
        [](Editor& e) { e.op("Fa1").chunk.stage = 0; },
        {who, "(Fa1)", "rank 0 holds stage 0"}},
       {"no such micro-batch", [](Editor& e) { e.op("Fa1").chunk.micro_batch = 8; }, {who, "(?)"}},
       {"send at the end of the pipeline",
        [](Editor& e) { e.op("send for Fa1 to rank 2").feeds.chunk.stage = 0; },
        {who, "(send for Fa1 to rank 2)", "need no message"}}});
}

TEST(Verify, RefusesOpsThatCannotRunSideBySide) {
  expect_refused(
      "pair", 1, 4, 0,
      {{"an overlapped op", [](Editor& e) { e.op("{F1&B0}").with_next = true; }, {"({F1&B0})", "side by side"}},
       {"a forward and an overlapped op", [](Editor& e) { e.op("F0").with_next = true; }, {"(F0)", "of its kind"}},
       {"nothing behind", [](Editor& e) { e.op("B3").with_next = true; }, {"(B3)", "not followed"}}});
}

TEST(Verify, RefusesAMissingRowOfWork) {
  Program program = make_program("1f1b", 1, 2);
  program.ops[0].resize(2);  // F0 B0
  EXPECT_EQ(refusal(program), "1f1b: rank 0: F1 of stage 0 is missing");
  program.ops[0].push_back({OpKind::forward, {0, 1}});
  EXPECT_EQ(refusal(program), "1f1b: rank 0, op 2 (F1) is never followed by B1 of stage 0");
  program.ops.clear();
  EXPECT_NE(refusal(program), "");
}

TEST(Verify, WantsTheStagesOfOneRankInOrder) {
  // The last rank of a V hands its rows to itself: no message, but an order.
  expect_refused("dualpipev", 2, 4, 1,
                 {{"second stage first", [](Editor& e) { e.swap("Fa0", "Fb0"); }, {"rank 1, op ", "(Fb0)", "Fa0"}}});
}

// The compute ops of `lists` with each receive right in front of the op that needs it, and each send right behind.
Program with_late_receives(Program program, const std::vector<OpList>& lists) {
  program.ops.clear();
  for (const OpList& list : lists) {
    OpList& ops = program.ops.emplace_back();
    for (const Op& op : list) {
      if (is_message(op)) continue;
      for (const Work& work : works_of(op)) {
        if (!needs_message(program, work)) continue;
        ops.push_back({OpKind::receive, {}, {}, program.rank_of(work_before(program, work)->chunk), work});
      }
      ops.push_back(op);
      for (const Work& work : works_of(op)) {
        const auto next = work_after(program, work);
        if (!next || !needs_message(program, *next)) continue;
        ops.push_back({OpKind::send, {}, {}, program.rank_of(next->chunk), *next});
      }
    }
  }
  return program;
}

TEST(Verify, FindsACircleThatOnlyWaitingSendsClose) {
  // rank 0: F0 send F1 send | receive B0 ...   rank 1: receive F0 B0 send | receive F1 ...
  const Program program = make_program("1f1b", 2, 2);
  EXPECT_EQ(refusal(program), "");
  EXPECT_EQ(refusal(with_late_receives(program, program.ops)),
            "1f1b: rank 0, op 3 (send for F1 to rank 1) waits forever, with sends that wait for their receive");
}

TEST(Verify, FindsACircle) {
  const Program program = make_program("1f1b", 2, 2);
  const auto forward = [](int stage, int micro_batch) { return Op{OpKind::forward, {stage, micro_batch}}; };
  const auto backward = [](int stage, int micro_batch) { return Op{OpKind::backward, {stage, micro_batch}}; };
  const std::vector<OpList> lists = {{forward(0, 0), backward(0, 0), forward(0, 1), backward(0, 1)},
                                     {forward(1, 0), forward(1, 1), backward(1, 0), backward(1, 1)}};
  EXPECT_EQ(refusal(with_late_receives(program, lists)),
            "1f1b: rank 0, op 3 (B0) waits forever, with sends that wait for nobody");
}

// A second opinion, straight from the meaning of the lists: plays them op by op on the sets of what has happened, with
// sends that wait for their receive, until nothing moves.
class Machine {
 public:
  explicit Machine(const Program& program) : program_(program), at_(program.ops.size(), 0) {}

  bool accepts() {
    for (bool moved = true; moved;) {
      moved = false;
      for (int rank = 0; rank < program_.num_ranks; ++rank) {
        for (size_t& at = at_[static_cast<size_t>(rank)]; at < list(rank).size(); ++at, moved = true) {
          const Outcome outcome = play(rank, list(rank)[at]);
          if (outcome == Outcome::wrong) return false;
          if (outcome == Outcome::wait) break;
        }
      }
    }
    for (int rank = 0; rank < program_.num_ranks; ++rank) {
      if (at_[static_cast<size_t>(rank)] < list(rank).size()) return false;
    }
    const auto num_chunks = static_cast<size_t>(program_.num_stages * program_.num_micro_batches);
    return done_[0].size() == num_chunks && done_[1].size() == num_chunks && split_ == weights_ &&
           std::ranges::equal(sent_ | std::views::keys, posted_);
  }

 private:
  enum class Outcome { done, wait, wrong };
  using Key = std::tuple<int, int, int>;  // pass, stage, micro-batch

  const OpList& list(int rank) const { return program_.ops[static_cast<size_t>(rank)]; }
  static Key key(int pass, Chunk chunk) { return {pass, chunk.stage, chunk.micro_batch}; }

  Outcome play(int rank, const Op& op) {
    if (op.kind == OpKind::receive) {
      const int pass = op.feeds.pass == Pass::forward ? 0 : 1;
      if (program_.rank_of(op.feeds.chunk) != rank || source(pass, op.feeds.chunk) != op.peer) return Outcome::wrong;
      return posted_.insert(key(pass, op.feeds.chunk)).second ? Outcome::done : Outcome::wrong;
    }
    if (op.kind == OpKind::send) {
      const int pass = op.feeds.pass == Pass::forward ? 0 : 1;
      const Key message = key(pass, op.feeds.chunk);
      if (source(pass, op.feeds.chunk) != rank || program_.rank_of(op.feeds.chunk) != op.peer) return Outcome::wrong;
      if (!done_[pass].contains(key(pass, before(pass, op.feeds.chunk)))) return Outcome::wrong;
      const auto [place, is_new] = sent_.emplace(message, &op);
      if (!is_new && place->second != &op) return Outcome::wrong;
      return posted_.contains(message) ? Outcome::done : Outcome::wait;
    }
    if (op.kind == OpKind::backward_weight) {
      if (!split_.contains(key(1, op.chunk))) return Outcome::wrong;
      return weights_.insert(key(1, op.chunk)).second ? Outcome::done : Outcome::wrong;
    }
    const bool has_forward = op.kind == OpKind::forward || op.kind == OpKind::overlapped;
    const bool has_backward = op.kind != OpKind::forward;
    const Chunk back = op.kind == OpKind::overlapped ? op.back_chunk : op.chunk;
    if (has_forward) {
      if (const Outcome outcome = ready(rank, 0, op.chunk); outcome != Outcome::done) return outcome;
    }
    if (has_backward) {
      if (!done_[0].contains(key(0, back))) return Outcome::wrong;
      if (const Outcome outcome = ready(rank, 1, back); outcome != Outcome::done) return outcome;
      done_[1].insert(key(1, back));
    }
    if (has_forward) done_[0].insert(key(0, op.chunk));
    if (op.kind == OpKind::backward_input) split_.insert(key(1, back));
    return Outcome::done;
  }

  Outcome ready(int rank, int pass, Chunk chunk) {
    if (program_.rank_of(chunk) != rank || done_[pass].contains(key(pass, chunk))) return Outcome::wrong;
    if (chunk.stage == (pass == 0 ? 0 : program_.num_stages - 1)) return Outcome::done;
    if (program_.rank_of(before(pass, chunk)) == rank) {
      return done_[pass].contains(key(pass, before(pass, chunk))) ? Outcome::done : Outcome::wrong;
    }
    if (!posted_.contains(key(pass, chunk))) return Outcome::wrong;
    return sent_.contains(key(pass, chunk)) ? Outcome::done : Outcome::wait;
  }

  static Chunk before(int pass, Chunk chunk) { return {chunk.stage + (pass == 0 ? -1 : 1), chunk.micro_batch}; }
  // The rank that sends the rows, or -1 where no message is due.
  int source(int pass, Chunk chunk) const {
    const Chunk from = before(pass, chunk);
    if (from.stage < 0 || from.stage >= program_.num_stages) return -1;
    return program_.rank_of(from) == program_.rank_of(chunk) ? -1 : program_.rank_of(from);
  }

  const Program& program_;
  std::vector<size_t> at_;
  std::set<Key> done_[2];
  std::set<Key> split_;
  std::set<Key> weights_;
  std::set<Key> posted_;
  std::map<Key, const Op*> sent_;
};

struct Tally {
  int refused = 0;
  int harmless = 0;
};

// Every refusal names a rank; both opinions agree on every break.
void judge(const Program& program, Tally& tally) {
  const std::string text = refusal(program);
  ASSERT_EQ(text.empty(), Machine(program).accepts()) << text << "\n" << lists_text(program);
  ++(text.empty() ? tally.harmless : tally.refused);
  ASSERT_TRUE(text.empty() || text.find(": rank ") != std::string::npos) << text;
}

TEST(Verify, AgreesWithASecondOpinionOnEveryDropRepeatAndSwap) {
  for (const auto& [schedule, ranks, micro_batches] : std::vector<std::tuple<const char*, int, int>>{
           {"1f1b", 3, 4}, {"zb1p", 3, 4}, {"dualpipe", 4, 8}, {"dualpipev", 3, 6}, {"pair", 1, 5}}) {
    SCOPED_TRACE(schedule);
    const Program whole = make_program(schedule, ranks, micro_batches);
    ASSERT_TRUE(Machine(whole).accepts());
    Tally drops;
    Tally repeats;
    Tally swaps;
    for (size_t rank = 0; rank < whole.ops.size(); ++rank) {
      for (size_t i = 0; i < whole.ops[rank].size(); ++i) {
        const auto offset = static_cast<std::ptrdiff_t>(i);
        Program dropped = whole;
        dropped.ops[rank].erase(dropped.ops[rank].begin() + offset);
        judge(dropped, drops);
        Program repeated = whole;
        repeated.ops[rank].insert(repeated.ops[rank].begin() + offset, whole.ops[rank][i]);
        judge(repeated, repeats);
        for (size_t j = i + 1; j < whole.ops[rank].size(); ++j) {
          Program swapped = whole;
          std::swap(swapped.ops[rank][i], swapped.ops[rank][j]);
          judge(swapped, swaps);
        }
      }
    }
    EXPECT_EQ(drops.harmless, 0);
    EXPECT_EQ(repeats.harmless, 0);
    EXPECT_GT(drops.refused, 0);
    EXPECT_GT(swaps.refused, swaps.harmless);  // weight gradients among themselves, posts among themselves, ...
  }
}

}  // namespace
}  // namespace cadre::verify_test
