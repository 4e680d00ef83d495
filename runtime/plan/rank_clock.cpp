// SPDX-License-Identifier: Apache-2.0
#include "runtime/plan/rank_clock.hpp"

#include <algorithm>
#include <limits>
#include <ranges>

#include "comm/base/check.hpp"

namespace cadre {

RankClock::RankClock(const Program& program, int rank, const std::vector<StageTimes>& stages, const ClockLink& link,
                     ClockOverlap overlap)
    : program_(program),
      rank_(rank),
      stages_(stages),
      overlap_(overlap),
      costs_(link),
      link_(link),
      forwards_left_(static_cast<int>(std::ranges::count_if(program.ops[static_cast<size_t>(rank)], [](const Op& op) {
        return op.kind == OpKind::forward || op.kind == OpKind::overlapped;
      }))) {
  for (size_t stage = 0; stage < stages.size(); ++stage) {
    int passes = 0;
    for (int i = 0; i < program.num_micro_batches; ++i) {
      passes += program.rank_of({static_cast<int>(stage), i}) == rank ? 1 : 0;
    }
    const size_t buckets = passes == 0 ? 0 : stages[stage].buckets.size();
    values_.emplace_back(buckets, -1);
    backwards_left_.emplace_back(buckets, passes);
  }
}

void RankClock::start_values(double now) {
  for (size_t stage = 0; stage < values_.size(); ++stage) {
    for (size_t bucket = 0; bucket < values_[stage].size(); ++bucket) {
      const double seconds = stages_[stage].buckets[bucket].values_s;
      if (seconds > 0.0) values_[stage][bucket] = last_bulk_ = link_.add_bulk(now, seconds);
    }
  }
}

RankClock::Way RankClock::way_of(Pass pass, Chunk chunk, bool at_once) {
  const StageTimes& stage = stages_[static_cast<size_t>(chunk.stage)];
  return {.parts = pass == Pass::forward ? &stage.forward : &stage.backward, .chunk = chunk, .at_once = at_once};
}

double RankClock::run(size_t position, double start) {
  const OpList& ops = program_.ops[static_cast<size_t>(rank_)];
  const Op& op = ops[position];
  if (position > 0 && ops[position - 1].with_next) return start;
  now_ = std::max(now_, start);
  if (op.kind == OpKind::send) return link_.send(now_, costs_.rows_s);
  const size_t count = count_together(std::span(ops).subspan(position));
  if (count > 1) {
    run_side_by_side(position, count);
    return now_;
  }
  switch (op.kind) {
    case OpKind::forward:
      run_together({way_of(Pass::forward, op.chunk)});
      forward_over();
      break;
    case OpKind::backward:
      if (!postponed_.empty()) {
        run_side_by_side(position, 1);
        break;
      }
      run_together({way_of(Pass::backward, op.chunk, /*at_once=*/true)});
      break;
    case OpKind::overlapped: {
      run_together({way_of(Pass::forward, op.chunk), way_of(Pass::backward, op.back_chunk)});
      postponed_.push_back(num_pushed_);
      while (postponed_.size() > static_cast<size_t>(program_.num_postponed)) {
        run_deferred_until(postponed_.front());
        postponed_.pop_front();
      }
      forward_over();
      break;
    }
    case OpKind::backward_input:
      run_together({way_of(Pass::backward, op.chunk)});
      split_.emplace_back(op.chunk, num_pushed_);
      break;
    case OpKind::backward_weight: {
      const auto found = std::ranges::find(split_, op.chunk, [](const auto& one) { return one.first; });
      CADRE_ASSERT(found != split_.end());
      run_deferred_until(found->second);
      split_.erase(found);
      break;
    }
    case OpKind::receive:
    case OpKind::send: break;
  }
  return now_;
}

void RankClock::run_side_by_side(size_t first, size_t count) {
  const OpList& ops = program_.ops[static_cast<size_t>(rank_)];
  const bool forward = ops[first].kind == OpKind::forward;
  std::vector<Way> ways;
  for (size_t i = 0; i < count; ++i) {
    ways.push_back(way_of(forward ? Pass::forward : Pass::backward, ops[first + i].chunk));
    ways.back().queue = forward ? 0 : static_cast<int>(i) + 1;
  }
  if (forward) {
    run_together(std::move(ways));
    for (size_t i = 0; i < count; ++i) forward_over();
    return;
  }
  merge_ = {.items = std::vector<std::deque<Deferred>>(count),
            .parts = std::vector<std::deque<size_t>>(count),
            .in_parts = std::vector<size_t>(count, 0)};
  run_together(std::move(ways));
  run_deferred_until(num_pushed_);
  postponed_.clear();
}

void RankClock::forward_over() {
  if (--forwards_left_ == 0) early_parts_first_ = program_.ends_by_layer;
}

void RankClock::run_together(std::vector<Way> ways) {
  if (overlap_ == ClockOverlap::on) return run_ways(ways);
  for (Way& way : ways) {
    std::vector<Way> alone = {std::move(way)};
    run_ways(alone);
  }
}

// As Engine::run: started in reverse order; of those that can go on the first does.
void RankClock::run_ways(std::vector<Way>& ways) {
  for (Way& way : ways | std::views::reverse) go_on(way);
  std::erase_if(ways, [](const Way& way) { return way.done(); });
  while (!ways.empty()) {
    auto next = std::ranges::find_if(ways, [&](const Way& way) { return ready_at(way) <= now_; });
    if (next == ways.end()) {
      if (overlap_ == ClockOverlap::on && run_one_deferred()) continue;
      next = std::ranges::min_element(ways, {}, [&](const Way& way) { return ready_at(way); });
      wait_until(ready_at(*next));
    }
    go_on(*next);
    if (next->done()) ways.erase(next);
  }
}

// When what the way waits for is there.
double RankClock::ready_at(const Way& way) {
  const PassPart& part = (*way.parts)[way.next];
  if (part.kind == PartKind::await) return way.arrivals[static_cast<size_t>(part.id)];
  const int bulk = values_[static_cast<size_t>(way.chunk.stage)][static_cast<size_t>(part.id)];
  return bulk < 0 ? now_ : link_.bulk_end(bulk, now_);
}

// Until it must wait.
void RankClock::go_on(Way& way) {
  for (; !way.done(); ++way.next) {
    const PassPart& part = (*way.parts)[way.next];
    switch (part.kind) {
      case PartKind::compute: compute(part.seconds); break;
      case PartKind::start: {
        const double arrival = link_.send(now_, part.seconds) + part.latency;
        exchanges_.push_back({now_, arrival});
        if (way.arrivals.size() <= static_cast<size_t>(part.id)) way.arrivals.resize(static_cast<size_t>(part.id) + 1);
        way.arrivals[static_cast<size_t>(part.id)] = arrival;
        break;
      }
      case PartKind::await:
      case PartKind::await_values:
        if (ready_at(way) > now_) return;
        break;
      case PartKind::defer: push(way, {part.seconds, way.chunk.stage, -1, way.part}); break;
      case PartKind::defer_last: push(way, {part.seconds, way.chunk.stage, -1, kLast}); break;
      case PartKind::end_bucket: end_bucket(way, part.id); break;
    }
  }
}

void RankClock::end_bucket(Way& way, int bucket) {
  push(way, {0.0, way.chunk.stage, bucket, way.part++});
  if (way.queue > 0) {
    const auto queue = static_cast<size_t>(way.queue) - 1;
    merge_.parts[queue].push_back(merge_.items[queue].size() - merge_.in_parts[queue]);
    merge_.in_parts[queue] = merge_.items[queue].size();
    hand_on();
  }
  if (way.at_once) run_deferred_until(num_pushed_);
}

void RankClock::push(const Way& way, Deferred item) {
  if (way.queue > 0) {
    merge_.items[static_cast<size_t>(way.queue) - 1].push_back(item);
    return;
  }
  deferred_.push_back(item);
  ++num_pushed_;
}

void RankClock::hand_on() {
  while (!merge_.parts[merge_.next].empty()) {
    const size_t count = merge_.parts[merge_.next].front();
    merge_.parts[merge_.next].pop_front();
    for (size_t i = 0; i < count; ++i) {
      deferred_.push_back(merge_.items[merge_.next].front());
      merge_.items[merge_.next].pop_front();
      ++num_pushed_;
    }
    merge_.in_parts[merge_.next] -= count;
    merge_.next = (merge_.next + 1) % merge_.items.size();
  }
}

bool RankClock::run_one_deferred() {
  if (deferred_.empty()) return false;
  const auto next = early_parts_first_ ? std::ranges::min_element(deferred_, {}, &Deferred::part) : deferred_.begin();
  const Deferred item = *next;
  deferred_.erase(next);
  compute(item.seconds);
  if (item.bucket < 0) return true;
  const auto stage = static_cast<size_t>(item.stage);
  const auto bucket = static_cast<size_t>(item.bucket);
  if (--backwards_left_[stage][bucket] > 0 && !program_.sums_each_pass) return true;
  const BucketTraffic& traffic = stages_[stage].buckets[bucket];
  if (traffic.reduce_s > 0.0) last_bulk_ = link_.add_bulk(now_, traffic.reduce_s);
  compute(traffic.add_s);
  return true;
}

void RankClock::run_deferred_until(uint64_t count) {
  while (num_pushed_ - deferred_.size() < count) run_one_deferred();
}

double RankClock::finish(double now) {
  now_ = std::max(now_, now);
  run_deferred_until(num_pushed_);
  if (last_bulk_ >= 0) wait_until(link_.bulk_end(last_bulk_, now_));
  return now_;
}

// While the link is busy work is slower.
void RankClock::compute(double seconds) {
  const double slowness = 1.0 + costs_.contention;
  const double busy = costs_.contention > 0.0 ? std::max(0.0, link_.busy_until(now_) - now_) : 0.0;
  const double slowed = std::min(busy, seconds * slowness);
  const double taken = slowed + seconds - slowed / slowness;
  now_ += taken;
  compute_s_ += taken;
}

void RankClock::wait_until(double time) {
  if (time <= now_) return;
  waits_.push_back({now_, time});
  now_ = time;
}

std::vector<ClockSpan> RankClock::flights() const {
  std::vector<ClockSpan> all = exchanges_;
  all.insert(all.end(), link_.bulk_spans().begin(), link_.bulk_spans().end());
  return union_of(std::move(all));
}

std::vector<ClockSpan> union_of(std::vector<ClockSpan> spans) {
  std::ranges::sort(spans, {}, &ClockSpan::begin);
  std::vector<ClockSpan> all;
  for (const ClockSpan& span : spans) {
    if (span.end <= span.begin) continue;
    if (!all.empty() && span.begin <= all.back().end) {
      all.back().end = std::max(all.back().end, span.end);
    } else {
      all.push_back(span);
    }
  }
  return all;
}

double length_of(const std::vector<ClockSpan>& spans) {
  double length = 0.0;
  for (const ClockSpan& span : spans) length += span.end - span.begin;
  return length;
}

std::vector<ClockSpan> common_of(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b) {
  std::vector<ClockSpan> common;
  for (size_t i = 0, j = 0; i < a.size() && j < b.size();) {
    const ClockSpan both = {std::max(a[i].begin, b[j].begin), std::min(a[i].end, b[j].end)};
    if (both.end > both.begin) common.push_back(both);
    a[i].end < b[j].end ? ++i : ++j;
  }
  return common;
}

double common_length(const std::vector<ClockSpan>& a, const std::vector<ClockSpan>& b) {
  return length_of(common_of(a, b));
}

double LinkClock::send(double now, double seconds) {
  advance(now);
  return occupy(now, seconds);
}

// A token bucket: a link that was idle for `burst_s` or longer sends as much at once. When it has been sent.
double LinkClock::occupy(double now, double seconds) {
  free_ = std::max(free_, now) + seconds;
  return std::max(now, free_ - burst_s_);
}

int LinkClock::add_bulk(double now, double seconds) {
  advance(now);
  left_.push_back(seconds);
  left_s_ += seconds;
  ends_.push_back(std::numeric_limits<double>::infinity());
  const auto number = static_cast<int>(ends_.size()) - 1;
  advance(now);
  return number;
}

// A piece follows each one that has ended, at that time.
void LinkClock::advance(double now) {
  while (!pieces_.empty() && pieces_.front() <= now) {
    const double ended = pieces_.front();
    pieces_.pop_front();
    begin_piece(ended, now);
  }
  while (pieces_.size() < kPiecesUnderWay && !left_.empty()) begin_piece(now, now);
}

// Nothing else is handed over until `known`: pieces that end before it are one.
void LinkClock::begin_piece(double now, double known) {
  if (left_.empty()) return;
  double& left = left_.front();
  const double room = known + burst_s_ - std::max(free_, now) - piece_s_;
  const double piece = std::max(piece_s_, room);
  const double seconds = piece_s_ > 0.0 ? std::min(left, piece) : left;
  const double end = occupy(now, seconds);
  left -= seconds;
  left_s_ = std::max(0.0, left_s_ - seconds);
  pieces_.push_back(end);
  bulk_spans_.push_back({now, end});
  if (left > 0.0) return;
  ends_[static_cast<size_t>(first_left_++)] = end;
  left_.pop_front();
}

double LinkClock::bulk_end(int number, double now) {
  advance(now);
  const double end = ends_[static_cast<size_t>(number)];
  if (number < first_left_) return end;
  double seconds = 0.0;
  for (int i = first_left_; i <= number; ++i) seconds += left_[static_cast<size_t>(i - first_left_)];
  return std::max(now, std::max(free_, now) + seconds - burst_s_);
}

double LinkClock::busy_until(double now) {
  advance(now);
  return std::max(now, std::max(free_, now) + left_s_ - burst_s_);
}

}  // namespace cadre
