// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/verify.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "comm/base/check.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {
namespace {

constexpr int kNever = -1;

// What has been seen of a work, and where on its rank; kNever until then.
struct Seen {
  int run = kNever;
  int received = kNever;
  int sent = kNever;      // on the rank of the work before
  int deferred = kNever;  // a backward that was split
  int weight = kNever;    // its weight gradient
};

class Verifier {
 public:
  explicit Verifier(const Program& program) : program_(program) {}

  Footprint run() {
    check_shape();
    for (rank_ = 0; rank_ < program_.num_ranks; ++rank_) check_list();
    check_complete();
    check_ends(Sends::eager, "sends that wait for nobody");
    check_ends(Sends::rendezvous, "sends that wait for their receive");
    return std::move(footprint_);
  }

 private:
  void check_shape() {
    const auto fits = [&](const std::vector<int>& route) {
      return static_cast<int>(route.size()) == program_.num_stages &&
             std::ranges::all_of(route, [&](int rank) { return rank >= 0 && rank < program_.num_ranks; });
    };
    const auto num_routes = static_cast<int>(program_.routes.size());
    CADRE_CHECK(num_routes >= 1 && program_.num_micro_batches % num_routes == 0 &&
                    static_cast<int>(program_.ops.size()) == program_.num_ranks &&
                    std::ranges::all_of(program_.routes, fits),
                fmt::format("{}: routes or lists do not fit {} ranks, {} stages and {} micro-batches", program_.name,
                            program_.num_ranks, program_.num_stages, program_.num_micro_batches));
    seen_.resize(static_cast<size_t>(num_works(program_)));
  }

  // One list, front to back: every op finds done before it what it needs.
  void check_list() {
    live_ = deferred_ = peak_live_ = peak_deferred_ = 0;
    const OpList& list = program_.ops[static_cast<size_t>(rank_)];
    for (position_ = 0; position_ < static_cast<int>(list.size()); ++position_) {
      const Op& op = list[static_cast<size_t>(position_)];
      check_fields(op);
      if (op.kind == OpKind::receive) check_receive(op);
      if (op.kind == OpKind::send) check_send(op);
      if (op.kind == OpKind::backward_weight) check_weight(op);
      const std::vector<Work> works = works_of(op);
      for (const Work& work : works) check_work(work);
      for (const Work& work : works) seen(work).run = position_;
      if (op.with_next) check_next(op);
      if (op.kind == OpKind::backward_input) seen(works.front()).deferred = position_;
      count_live(op);
    }
    footprint_.peak_live_forwards.push_back(peak_live_);
    footprint_.peak_deferred_weights.push_back(peak_deferred_);
  }

  void check_fields(const Op& op) {
    const Chunk chunk = is_message(op) ? op.feeds.chunk : op.chunk;
    const bool chunks_exist =
        program_.contains(chunk) && (op.kind != OpKind::overlapped || program_.contains(op.back_chunk));
    if (!chunks_exist) fail("is of a stage or micro-batch that the program does not have");
    if (is_message(op)) return;
    require(program_.rank_of(op.chunk) == rank_, [&] { return held_elsewhere(op.chunk); });
    if (op.kind != OpKind::overlapped) return;
    require(program_.rank_of(op.back_chunk) == rank_, [&] { return held_elsewhere(op.back_chunk); });
  }

  void check_next(const Op& op) {
    const OpList& ops = program_.ops[static_cast<size_t>(rank_)];
    const auto next = static_cast<size_t>(position_) + 1;
    require(op.kind == OpKind::forward || op.kind == OpKind::backward,
            [] { return "cannot run side by side with another op"; });
    require(next < ops.size() && ops[next].kind == op.kind && ops[next].chunk.stage == op.chunk.stage,
            [] { return "is not followed by an op of its kind and stage, to run side by side with"; });
  }

  void check_work(Work work) {
    const Seen& now = seen(work);
    require(now.run == kNever, [&] { return fmt::format("runs {} again, after op {}", name(work), now.run); });
    if (work.pass == Pass::backward) {
      const Work forward = {Pass::forward, work.chunk};
      require(seen(forward).run != kNever, [&] { return fmt::format("runs before its forward {}", name(forward)); });
    }
    if (needs_message(program_, work)) {
      require(now.received != kNever,
              [&] { return fmt::format("runs before the receive of the rows for {}", name(work)); });
    } else if (const auto before = work_before(program_, work)) {
      require(seen(*before).run != kNever,
              [&] { return fmt::format("runs before {} of the same rank", stage_of(*before)); });
    }
  }

  void check_weight(const Op& op) {
    Seen& backward = seen({Pass::backward, op.chunk});
    require(backward.deferred != kNever, [&] { return "has no input gradient before it"; });
    require(backward.weight == kNever, [&] { return fmt::format("runs again, after op {}", backward.weight); });
    backward.weight = position_;
  }

  void check_receive(const Op& op) {
    require(program_.rank_of(op.feeds.chunk) == rank_, [&] { return held_elsewhere(op.feeds.chunk); });
    require(needs_message(program_, op.feeds), [&] { return "is of rows that need no message"; });
    check_peer(op, *work_before(program_, op.feeds));
    Seen& now = seen(op.feeds);
    require(now.received == kNever, [&] { return fmt::format("is posted again, after op {}", now.received); });
    now.received = position_;
  }

  void check_send(const Op& op) {
    require(needs_message(program_, op.feeds), [&] { return "is of rows that need no message"; });
    const Work maker = *work_before(program_, op.feeds);
    require(program_.rank_of(maker.chunk) == rank_, [&] { return held_elsewhere(maker.chunk); });
    check_peer(op, op.feeds);
    require(seen(maker).run != kNever,
            [&] { return fmt::format("comes before {}, which makes the rows", stage_of(maker)); });
    Seen& now = seen(op.feeds);
    require(now.sent == kNever, [&] { return fmt::format("is sent again, after op {}", now.sent); });
    now.sent = position_;
  }

  void check_peer(const Op& op, Work other) {
    const int right = program_.rank_of(other.chunk);
    require(op.peer == right,
            [&] { return fmt::format("has the wrong peer: rank {} holds stage {}", right, other.chunk.stage); });
  }

  void count_live(const Op& op) {
    if (op.kind == OpKind::forward || op.kind == OpKind::overlapped) ++live_;
    if (op.kind == OpKind::backward_input) ++deferred_;
    peak_live_ = std::max(peak_live_, live_);
    peak_deferred_ = std::max(peak_deferred_, deferred_);
    if (op.kind == OpKind::backward_weight) --deferred_;
    if (op.kind == OpKind::backward || op.kind == OpKind::overlapped || op.kind == OpKind::backward_weight) --live_;
  }

  // What is in no list.
  void check_complete() {
    for (int micro_batch = 0; micro_batch < program_.num_micro_batches; ++micro_batch) {
      for (int stage = 0; stage < program_.num_stages; ++stage) {
        const Chunk chunk = {stage, micro_batch};
        const Work forward = {Pass::forward, chunk};
        const Work backward = {Pass::backward, chunk};
        rank_ = program_.rank_of(chunk);
        position_ = seen(forward).run;
        require(seen(forward).run != kNever, [&] { return fmt::format("{} is missing", stage_of(forward)); });
        require(seen(backward).run != kNever,
                [&] { return fmt::format("is never followed by {}", stage_of(backward)); });
        position_ = seen(backward).run;
        require(seen(backward).deferred == kNever || seen(backward).weight != kNever,
                [&] { return "is never followed by its weight gradient"; });
        check_sent(forward);
        check_sent(backward);
      }
    }
  }

  void check_sent(Work work) {
    if (!needs_message(program_, work)) return;
    position_ = seen(work).received;
    require(seen(work).sent != kNever, [&] { return "waits for rows that the peer never sends"; });
  }

  void check_ends(Sends sends, const char* how) {
    const Walk walked = walk(program_, equal_costs(program_), sends);
    for (rank_ = 0; rank_ < program_.num_ranks; ++rank_) {
      position_ = static_cast<int>(walked.stopped_at[static_cast<size_t>(rank_)]);
      const size_t length = program_.ops[static_cast<size_t>(rank_)].size();
      require(static_cast<size_t>(position_) == length, [&] { return fmt::format("waits forever, with {}", how); });
    }
  }

  Seen& seen(Work work) { return seen_[static_cast<size_t>(index_of(program_, work))]; }
  std::string name(Work work) const { return name_of(program_, work); }
  std::string stage_of(Work work) const { return fmt::format("{} of stage {}", name(work), work.chunk.stage); }
  std::string held_elsewhere(Chunk chunk) const {
    return fmt::format("is not for this rank: rank {} holds stage {}", program_.rank_of(chunk), chunk.stage);
  }

  template <class Text>
  void require(bool holds, Text&& text) const {
    if (!holds) fail(text());
  }
  [[noreturn]] void fail(const std::string& text) const {
    const OpList& list = program_.ops[static_cast<size_t>(rank_)];
    if (position_ == kNever) {
      throw Error(ErrorKind::internal, fmt::format("{}: rank {}: {}", program_.name, rank_, text));
    }
    const Op& op = list[static_cast<size_t>(position_)];
    const bool has_name = program_.contains(is_message(op) ? op.feeds.chunk : op.chunk);
    throw Error(ErrorKind::internal, fmt::format("{}: rank {}, op {} ({}) {}", program_.name, rank_, position_,
                                                 has_name ? name_of(program_, op) : "?", text));
  }

  const Program& program_;
  std::vector<Seen> seen_;  // by work
  Footprint footprint_;
  int rank_ = 0;
  int position_ = 0;
  int live_ = 0;
  int deferred_ = 0;
  int peak_live_ = 0;
  int peak_deferred_ = 0;
};

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

Footprint verify(const Program& program) { return Verifier(program).run(); }

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
