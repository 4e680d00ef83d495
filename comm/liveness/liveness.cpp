// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/liveness.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "comm/liveness/contact.hpp"
#include "comm/liveness/job_processes.hpp"

namespace cadre {
namespace {

constexpr double kConnectSeconds = 20.0;
// Between the end of a connection and the conclusion that its process died: where the launcher is ending the whole job,
// this process is gone by then.
constexpr int64_t kGraceNs = 200'000'000;
constexpr int64_t kFlushNs = 100'000'000;
constexpr std::chrono::milliseconds kIdle{500};
constexpr std::chrono::seconds kRollCallTime{1};
constexpr size_t kMostNamed = 4;
constexpr size_t kNoLink = SIZE_MAX;

// Prints what is buffered, unless another thread is printing.
void flush_if_free(FILE* file) {
  if (ftrylockfile(file) != 0) return;
  fflush_unlocked(file);
  funlockfile(file);
}

}  // namespace

Liveness::Liveness(int rank, int num_ranks, const Tracer& tracer, const GatherBytes& gather)
    : rank_(static_cast<size_t>(rank)), tracer_(tracer), states_(static_cast<size_t>(num_ranks)) {
  if (num_ranks > 1) {
    Neighbourhood made = connect_neighbours(rank, num_ranks, gather, kConnectSeconds);
    members_ = std::move(made.members);
    links_ = std::move(made.links);
    failure_ = std::move(made.failure);
  }
  wake_ = Socket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!links_.empty()) thread_ = std::jthread([this](const std::stop_token& stop) { listen(stop); });
}

Liveness::~Liveness() {
  leave(/*job_ends=*/false);
  thread_.request_stop();
  static_cast<void>(eventfd_write(wake_.get(), 1));
}

void Liveness::listen(const std::stop_token& stop) {
  std::vector<pollfd> descriptors;
  std::vector<size_t> polled;
  while (!stop.stop_requested()) {
    descriptors.assign(1, {wake_.get(), POLLIN, 0});
    polled.clear();
    int64_t next_loss_ns = 0;
    {
      const std::lock_guard lock(mutex_);
      next_loss_ns = publish_losses();
      for (size_t link = 0; link < links_.size(); ++link) {
        if (!links_[link].is_open()) continue;
        const short events = links_[link].has_unsent() ? POLLIN | POLLOUT : POLLIN;
        descriptors.push_back({links_[link].descriptor(), events, 0});
        polled.push_back(link);
      }
    }
    const int64_t idle_ns = std::chrono::nanoseconds(kIdle).count();
    const int64_t pause_ns = next_loss_ns == 0 ? idle_ns : std::clamp<int64_t>(next_loss_ns, 0, idle_ns);
    if (poll(descriptors.data(), descriptors.size(), static_cast<int>(pause_ns / 1'000'000) + 1) <= 0) continue;
    eventfd_t woken = 0;
    static_cast<void>(eventfd_read(wake_.get(), &woken));
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < polled.size(); ++i) {
      if ((descriptors[i + 1].revents & ~POLLOUT) != 0) read_from(polled[i]);
    }
    for (Link& link : links_) link.flush();
    changed_.notify_all();
  }
}

// Nanoseconds until the next neighbour whose connection closed counts as lost; 0: none will.
int64_t Liveness::publish_losses() {
  int64_t next_ns = 0;
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    const State& state = states_[rank];
    if (state.closed_ns == 0 || state.left || state.lost || job_ends_) continue;
    const int64_t left_ns = state.closed_ns + kGraceNs - trace_clock_ns();
    if (left_ns > 0) {
      next_ns = next_ns == 0 ? left_ns : std::min(next_ns, left_ns);
      continue;
    }
    mark_lost(rank);
    flood({.kind = Frame::Kind::lost, .subject = static_cast<int32_t>(rank)});
  }
  return next_ns;
}

void Liveness::mark_lost(size_t rank) {
  states_[rank].lost = true;
  num_lost_.fetch_add(1, std::memory_order_release);
  changed_.notify_all();
}

void Liveness::read_from(size_t link) {
  std::vector<Frame> frames;
  const bool open = links_[link].receive(frames, static_cast<int>(states_.size()));
  for (const Frame& frame : frames) take(link, frame);
  if (open) return;
  states_[static_cast<size_t>(links_[link].peer())].closed_ns = trace_clock_ns();
  links_[link].close();
}

void Liveness::take(size_t link, const Frame& frame) {
  if (frame.kind == Frame::Kind::answer) return route_answer(frame);
  const auto origin = static_cast<size_t>(frame.origin);
  if (origin == rank_ || frame.number <= states_[origin].flooded) return;  // known, over another connection
  states_[origin].flooded = frame.number;
  apply(link, frame);
}

void Liveness::apply(size_t link, const Frame& frame) {
  State& origin = states_[static_cast<size_t>(frame.origin)];
  const auto subject = static_cast<size_t>(frame.subject);
  switch (frame.kind) {
    case Frame::Kind::question:
      origin.question = frame.number;
      origin.question_link = link;
      links_[link].queue(make_answer(frame));
      break;
    case Frame::Kind::view: origin.view = frame.hash; break;
    case Frame::Kind::lost:
      if (states_[subject].lost) return;  // other neighbours of it have said so, and that has been forwarded
      mark_lost(subject);
      if (subject == rank_) expelled_by_ = frame.origin;
      break;
    case Frame::Kind::farewell: origin.left = true; break;
    case Frame::Kind::job_ends:
      origin.left = true;
      job_ends_ = true;
      break;
    case Frame::Kind::end_job:
      forward(frame, link);
      flush_for(kFlushNs);
      end_process(frame.code);
    case Frame::Kind::answer: return;
  }
  forward(frame, link);
}

Frame Liveness::make_answer(const Frame& question) const {
  const Whereabouts here = tracer_.whereabouts();
  Frame answer{.kind = Frame::Kind::answer,
               .origin = static_cast<int32_t>(rank_),
               .subject = question.origin,
               .number = question.number,
               .step = here.at.step,
               .nanoseconds = here.since_ns == 0 ? -1 : trace_clock_ns() - here.since_ns,
               .micro_batch = here.at.micro_batch,
               .layer = here.at.layer,
               .waits = here.waits ? 1U : 0U};
  std::strncpy(answer.phase.data(), here.at.phase, answer.phase.size() - 1);
  return answer;
}

void Liveness::route_answer(const Frame& frame) {
  const auto asker = static_cast<size_t>(frame.subject);
  if (asker != rank_) {
    const State& state = states_[asker];
    if (state.question == frame.number) links_[state.question_link].queue(frame);
    return;
  }
  State& state = states_[static_cast<size_t>(frame.origin)];
  state.answered = frame.number;
  state.phase = std::string(frame.phase.data(), strnlen(frame.phase.data(), frame.phase.size()));
  state.answer = {frame.waits != 0, {frame.step, frame.micro_batch, frame.layer, ""}, frame.nanoseconds};
}

// Queues it for all neighbours. Where the thread does not run, wake it.
void Liveness::flood(Frame frame) {
  frame.origin = static_cast<int32_t>(rank_);
  frame.number = ++num_floods_;
  forward(frame, kNoLink);
  static_cast<void>(eventfd_write(wake_.get(), 1));
}

void Liveness::forward(const Frame& frame, size_t from) {
  for (size_t link = 0; link < links_.size(); ++link) {
    if (link != from) links_[link].queue(frame);
  }
}

// Before a process ends: no thread will send what is queued later.
void Liveness::flush_for(int64_t nanoseconds) {
  const int64_t end_ns = trace_clock_ns() + nanoseconds;
  const auto unsent = [](const Link& link) { return link.has_unsent(); };
  for (;;) {
    for (Link& link : links_) link.flush();
    if (std::ranges::none_of(links_, unsent) || trace_clock_ns() >= end_ns) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool Liveness::is_there(size_t rank) const { return rank != rank_ && !states_[rank].lost && !states_[rank].left; }

std::string Liveness::name(size_t rank) const {
  return fmt::format("rank {} on {} (pid {})", rank, members_[rank].host, members_[rank].pid);
}

std::vector<int> Liveness::lost() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> ranks;
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    if (states_[rank].lost) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

std::string Liveness::describe_lost() const {
  std::string text;
  for (const int rank : lost()) text += fmt::format("{}{}", text.empty() ? "" : ", ", name(static_cast<size_t>(rank)));
  return text;
}

std::string Liveness::describe_late() {
  if (links_.empty()) return "";
  std::unique_lock lock(mutex_);
  flood({.kind = Frame::Kind::question});
  question_ = num_floods_;
  const auto silent = [this](size_t rank) { return is_there(rank) && states_[rank].answered != question_; };
  changed_.wait_for(lock, kRollCallTime, [&] {
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      if (silent(rank)) return false;
    }
    return true;
  });

  std::vector<std::string> stopped, computing, waiting;
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    if (!is_there(rank)) continue;
    const State& state = states_[rank];
    if (silent(rank)) {
      stopped.push_back(fmt::format("{} does not answer: is it stopped?", name(rank)));
      continue;
    }
    Position at = state.answer.at;
    at.phase = state.phase.c_str();
    const bool known = state.answer.since_ns >= 0;
    const std::string text =
        fmt::format("{} {} at {}{}", name(rank), state.answer.waits ? "waits" : "computes",
                    known ? at.describe() : "an unknown place",
                    known ? fmt::format(" for {:.0f} s", static_cast<double>(state.answer.since_ns) * 1e-9) : "");
    (state.answer.waits ? waiting : computing).push_back(text);
  }
  std::vector<std::string>& named = !stopped.empty() ? stopped : !computing.empty() ? computing : waiting;
  const size_t more = named.size() - std::min(named.size(), kMostNamed);
  named.resize(named.size() - more);
  return fmt::format("{}{}", fmt::join(named, ", "), more == 0 ? "" : fmt::format(" and {} more", more));
}

uint64_t Liveness::own_view() const {
  std::string text = "gone";
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    if (states_[rank].lost || states_[rank].left) text += fmt::format(" {}", rank);
  }
  return hash_name(text) | 1;
}

std::vector<int> Liveness::agree_on_survivors(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::unique_lock lock(mutex_);
  uint64_t said = 0;
  for (;;) {
    num_known_.store(num_lost_.load());
    if (expelled_by_ >= 0) {
      throw Error(ErrorKind::restart, fmt::format("{} lost its connection to this rank, which the others take for dead",
                                                  name(static_cast<size_t>(expelled_by_))));
    }
    const uint64_t mine = own_view();
    if (mine != said) flood({.kind = Frame::Kind::view, .hash = mine});
    said = mine;
    std::vector<int> survivors;
    std::string others;
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      if (is_there(rank) && states_[rank].view != mine)
        others += fmt::format("{}{}", others.empty() ? "" : ", ", name(rank));
      if (is_there(rank) || rank == rank_) survivors.push_back(static_cast<int>(rank));
    }
    if (others.empty()) return survivors;
    if (std::chrono::steady_clock::now() > end) {
      throw Error(ErrorKind::timeout, fmt::format("waited {:.0f} s for {} to agree on who is left", seconds, others));
    }
    changed_.wait_for(lock, kIdle);
  }
}

void Liveness::leave(bool job_ends) {
  const std::lock_guard lock(mutex_);
  flood({.kind = job_ends ? Frame::Kind::job_ends : Frame::Kind::farewell});
  flush_for(kFlushNs);
}

void Liveness::end_job(int code) {
  const std::lock_guard lock(mutex_);
  flood({.kind = Frame::Kind::end_job, .code = code});
  flush_for(kFlushNs);
  end_process(code);
}

void Liveness::end_process(int code) {
  // A process that is stopped does not answer to a frame, and mpirun would wait for it.
  for (size_t rank = 0; rank < members_.size(); ++rank) {
    if (rank != rank_ && members_[rank].host == members_[rank_].host) {
      kill_if_stopped(static_cast<pid_t>(members_[rank].pid));
    }
  }
  flush_if_free(stdout);
  end_mpirun();  // by itself it would exit with code 0
  std::_Exit(code);
}

}  // namespace cadre
