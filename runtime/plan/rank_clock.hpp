// SPDX-License-Identifier: Apache-2.0
// One rank's way through its part of a program, on a clock: the lanes, the filler and the order of the executor, with the time
// of each piece of work given, over a link that sends one transfer after the other. A pure simulation; all ranks of an
// exchange are taken to be at the same place.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <utility>
#include <vector>

#include "runtime/schedule/program.hpp"

namespace cadre {

enum class PartKind {
  compute,       // the rank works for `seconds`
  start,         // exchange `id` starts: the link is busy for `seconds`, the rows are there `latency` after that
  await,         // the rank needs the rows of exchange `id`
  await_values,  // the rank needs the new values of bucket `id`
  defer,         // weight gradients that take `seconds`, for later
  defer_last,    // the same of experts whose gradients are not summed: no bucket waits for them
  end_bucket,    // the last of them for bucket `id`; in a full backward they run now
};

struct PassPart {
  PartKind kind;
  double seconds = 0.0;
  double latency = 0.0;
  int id = 0;
};
constexpr bool is_deferred(const PassPart& part) {
  return part.kind == PartKind::defer || part.kind == PartKind::defer_last;
}
// A micro-batch's way through a stage in one direction.
using PassParts = std::vector<PassPart>;

// Sums of gradients and new values of a bucket: how long they occupy the link, and the rank.
struct BucketTraffic {
  double reduce_s = 0.0;
  double add_s = 0.0;  // of the rank, to add what arrives
  double values_s = 0.0;
};

struct StageTimes {
  PassParts forward;
  PassParts backward;
  std::vector<BucketTraffic> buckets;
};

struct ClockSpan {
  double begin = 0.0;
  double end = 0.0;
};
// Of spans in any order: their union, ascending; its length; what two unions have in common, and its length.
std::vector<ClockSpan> union_of(std::vector<ClockSpan> spans);
double length_of(const std::vector<ClockSpan>& spans);
std::vector<ClockSpan> common_of(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b);
double common_length(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b);

struct ClockLink {
  double piece_s = 0.0;     // of a piece of bulk
  double burst_s = 0.0;     // of sending that an idle link saves up
  double rows_s = 0.0;      // of the rows of a micro-batch, between stages
  double contention = 0.0;  // work takes 1 + this times as long while the link is busy
};

// What a link sends, in the order in which it was asked. Bulk (sums of gradients, values) goes in pieces, two of them under way
// at a time, so that an exchange waits for these two at most.
class LinkClock {
 public:
  static constexpr int kPiecesUnderWay = 2;

  explicit LinkClock(const ClockLink& link) : piece_s_(link.piece_s), burst_s_(link.burst_s) {}

  // When a transfer that is handed over at `now` has been sent. `now` does not decrease from call to call.
  double send(double now, double seconds);
  // Bulk, behind all bulk before it; its number.
  int add_bulk(double now, double seconds);
  // When it has been sent if nothing else is handed over from `now` on.
  double bulk_end(int number, double now);
  // When all has been sent, likewise.
  double busy_until(double now);

  const std::vector<ClockSpan>& bulk_spans() const { return bulk_spans_; }

 private:
  void advance(double now);
  void begin_piece(double now, double known);

  double occupy(double now, double seconds);

  double piece_s_;
  double burst_s_;
  double free_ = 0.0;        // when all has been sent at the rate of the link; what is sent ends `burst_s` earlier
  std::deque<double> left_;  // seconds of bulk that are in no piece, by number from first_left_ on
  double left_s_ = 0.0;      // their sum
  int first_left_ = 0;
  std::vector<double> ends_;   // of bulk that is all in pieces
  std::deque<double> pieces_;  // ends of those under way
  std::vector<ClockSpan> bulk_spans_;
};

enum class ClockOverlap { on, off };

class RankClock {
 public:
  // `stages` by number in the program, of those that the rank holds; all arguments outlive this object.
  RankClock(const Program& program, int rank, const std::vector<StageTimes>& stages, const ClockLink& link,
            ClockOverlap overlap);

  // New values of all buckets are handed over, as at the beginning of a step, from `now` on.
  void start_values(double now);
  // Runs the op at `position` of the rank's list from `start` on: when it ends. Ops come in the order of the list, without receives.
  // A send ends when its rows have been sent, and takes no time of the rank. Of ops that run side by side the first takes all the
  // time.
  double run(size_t position, double start);
  // The end of the list is reached at `now`: waits for what is under way; when that has ended.
  double finish(double now);

  double compute_s() const { return compute_s_; }
  const std::vector<ClockSpan>& waits() const { return waits_; }          // for exchanges, sums and values
  const std::vector<ClockSpan>& exchanges() const { return exchanges_; }  // in flight
  std::vector<ClockSpan> flights() const;                                 // with sums and values

 private:
  static constexpr size_t kLast = std::numeric_limits<size_t>::max();
  struct Deferred {
    double seconds;
    int stage;
    int bucket;  // that is complete with it; -1: none
    size_t part = 0;
  };
  // A pass under way.
  struct Way {
    const PassParts* parts;
    Chunk chunk;
    bool at_once;   // weight gradients run at the end of each bucket
    int queue = 0;  // that they go to
    size_t next = 0;
    size_t part = 0;                    // of its deferred work
    std::vector<double> arrivals = {};  // of exchanges, by id

    bool done() const { return next == parts->size(); }
  };
  // Deferred work of passes side by side: handed on bucket by bucket, of each bucket pass by pass.
  struct Merge {
    std::vector<std::deque<Deferred>> items;
    std::vector<std::deque<size_t>> parts;
    std::vector<size_t> in_parts;
    size_t next = 0;
  };

  Way way_of(Pass pass, Chunk chunk, bool at_once = false);
  void run_ways(std::vector<Way>& ways);
  void run_together(std::vector<Way> ways);
  void go_on(Way& way);
  double ready_at(const Way& way);
  void run_side_by_side(size_t first, size_t count);
  void end_bucket(Way& way, int bucket);
  void push(const Way& way, Deferred item);
  void hand_on();
  bool run_one_deferred();
  void run_deferred_until(uint64_t count);
  void forward_over();
  void compute(double seconds);
  void wait_until(double time);

  const Program& program_;
  int rank_;
  const std::vector<StageTimes>& stages_;
  ClockOverlap overlap_;
  ClockLink costs_;
  LinkClock link_;
  double now_ = 0.0;
  double compute_s_ = 0.0;
  std::vector<ClockSpan> waits_;
  std::vector<ClockSpan> exchanges_;
  std::deque<Deferred> deferred_;
  int forwards_left_;
  bool early_parts_first_ = false;  // see DeferredQueue
  uint64_t num_pushed_ = 0;
  std::deque<uint64_t> postponed_;                 // of the last overlapped ops: deferred work up to this
  std::vector<std::pair<Chunk, uint64_t>> split_;  // of each backward_input without its backward_weight
  Merge merge_;
  std::vector<std::vector<int>> values_;          // numbers of bulk, by stage and bucket; -1: none
  std::vector<std::vector<int>> backwards_left_;  // by stage and bucket
  int last_bulk_ = -1;
};

}  // namespace cadre
