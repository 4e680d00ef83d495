// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/roll_call.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "comm/transport/job_processes.hpp"

namespace cadre {
namespace {

constexpr double kConnectSeconds = 20.0;
// Between the end of a connection and the conclusion that its process died: where the launcher is ending the whole job,
// this one is gone by then.
constexpr int64_t kGraceNs = 200'000'000;
constexpr std::chrono::milliseconds kIdle{500};
constexpr std::chrono::seconds kAnswerTime{1};
constexpr size_t kMostNamed = 4;

std::atomic<RollCall*> roll_call_of_process = nullptr;

// What was printed is not lost, unless another thread is printing.
void flush_if_free(FILE* file) {
  if (ftrylockfile(file) != 0) return;
  fflush_unlocked(file);
  funlockfile(file);
}

}  // namespace

struct RollCall::Message {
  enum class Kind : uint32_t { question, answer, view, farewell, job_ends, end_job };
  Kind kind = Kind::question;
  int32_t code = 0;     // end_job
  uint64_t number = 0;  // of a question or its answer; of a view what it is
  int64_t step = -1;
  int64_t nanoseconds = 0;  // at this place; -1: not known
  int32_t micro_batch = -1;
  int32_t layer = -1;
  uint32_t waits = 0;
  std::array<char, 36> phase{};
};

RollCall::RollCall(Transport& world) : rank_(world.rank()), states_(static_cast<size_t>(world.size())) {
  if (world.size() > 1) {
    Connected connected = connect_all(world, kConnectSeconds);
    peers_ = std::move(connected.peers);
    why_not_ = std::move(connected.why_not);
  }
  wake_ = Socket(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!peers_.empty()) thread_ = std::jthread([this](const std::stop_token& stop) { listen(stop); });
  roll_call_of_process.store(this);
}

RollCall::~RollCall() {
  roll_call_of_process.store(nullptr);
  leave(/*job_ends=*/false);
  thread_.request_stop();
  static_cast<void>(eventfd_write(wake_.get(), 1));
}

RollCall* roll_call() { return roll_call_of_process.load(std::memory_order_acquire); }

void RollCall::listen(const std::stop_token& stop) {
  std::vector<pollfd> descriptors;
  std::vector<size_t> ranks;
  while (!stop.stop_requested()) {
    descriptors.clear();
    ranks.clear();
    int64_t next_loss_ns = 0;
    {
      const std::lock_guard lock(mutex_);
      next_loss_ns = publish_losses();
      for (size_t rank = 0; rank < peers_.size(); ++rank) {
        if (!peers_[rank].socket.is_open()) continue;
        descriptors.push_back({peers_[rank].socket.get(), POLLIN, 0});
        ranks.push_back(rank);
      }
    }
    const int64_t idle_ns = std::chrono::nanoseconds(kIdle).count();
    const int64_t pause_ns = next_loss_ns == 0 ? idle_ns : std::clamp<int64_t>(next_loss_ns, 0, idle_ns);
    descriptors.push_back({wake_.get(), POLLIN, 0});
    if (poll(descriptors.data(), descriptors.size(), static_cast<int>(pause_ns / 1'000'000) + 1) <= 0) continue;
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < ranks.size(); ++i) {
      if (descriptors[i].revents != 0) read_from(ranks[i]);
    }
    changed_.notify_all();
  }
}

// Nanoseconds until the next rank that was cut off counts as lost; 0: none is.
int64_t RollCall::publish_losses() {
  int64_t next_ns = 0;
  for (State& state : states_) {
    if (state.closed_ns == 0 || state.left || state.lost || job_ends_) continue;
    const int64_t left_ns = state.closed_ns + kGraceNs - trace_clock_ns();
    if (left_ns > 0) {
      next_ns = next_ns == 0 ? left_ns : std::min(next_ns, left_ns);
      continue;
    }
    state.lost = true;
    num_lost_.fetch_add(1, std::memory_order_release);
    changed_.notify_all();
  }
  return next_ns;
}

void RollCall::read_from(size_t rank) {
  State& state = states_[rank];
  std::array<std::byte, 4096> bytes;
  const ssize_t count = recv(peers_[rank].socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (count > 0) {
    state.unread.insert(state.unread.end(), bytes.begin(), bytes.begin() + count);
    size_t read = 0;
    for (; state.unread.size() - read >= sizeof(Message); read += sizeof(Message)) {
      Message message;
      std::memcpy(&message, state.unread.data() + read, sizeof(Message));
      take(rank, message);
    }
    state.unread.erase(state.unread.begin(), state.unread.begin() + static_cast<std::ptrdiff_t>(read));
    return;
  }
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  peers_[rank].socket.close();
  state.closed_ns = trace_clock_ns();
}

void RollCall::take(size_t rank, const Message& message) {
  State& state = states_[rank];
  switch (message.kind) {
    case Message::Kind::question: {
      const Whereabouts here = whereabouts();
      Message answer{.kind = Message::Kind::answer,
                     .number = message.number,
                     .step = here.at.step,
                     .nanoseconds = here.since_ns == 0 ? -1 : trace_clock_ns() - here.since_ns,
                     .micro_batch = here.at.micro_batch,
                     .layer = here.at.layer,
                     .waits = here.waits ? 1U : 0U};
      std::strncpy(answer.phase.data(), here.at.phase, answer.phase.size() - 1);
      return say(rank, answer);
    }
    case Message::Kind::answer:
      state.asked = message.number;
      state.phase = std::string(message.phase.data(), strnlen(message.phase.data(), message.phase.size()));
      state.answer = {message.waits != 0, {message.step, message.micro_batch, message.layer, ""}, message.nanoseconds};
      return;
    case Message::Kind::view: state.view = message.number; return;
    case Message::Kind::farewell: state.left = true; return;
    case Message::Kind::job_ends:
      state.left = true;
      job_ends_ = true;
      return;
    case Message::Kind::end_job: end_process(message.code);
  }
}

// What cannot be sent at once is not: the peer is stopped or gone.
void RollCall::say(size_t rank, const Message& message) {
  if (!peers_[rank].socket.is_open()) return;
  static_cast<void>(send(peers_[rank].socket.get(), &message, sizeof(message), MSG_NOSIGNAL | MSG_DONTWAIT));
}

void RollCall::say_to_all(const Message& message) {
  for (size_t rank = 0; rank < peers_.size(); ++rank) say(rank, message);
}

bool RollCall::is_there(size_t rank) const {
  return rank != static_cast<size_t>(rank_) && !states_[rank].lost && !states_[rank].left;
}

std::string RollCall::name(size_t rank) const {
  return fmt::format("rank {} on {} (pid {})", rank, peers_[rank].host, peers_[rank].pid);
}

std::vector<int> RollCall::lost() const {
  const std::lock_guard lock(mutex_);
  std::vector<int> ranks;
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    if (states_[rank].lost) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

std::string RollCall::describe_lost() const {
  std::string text;
  for (const int rank : lost()) text += fmt::format("{}{}", text.empty() ? "" : ", ", name(static_cast<size_t>(rank)));
  return text;
}

std::string RollCall::describe_late() {
  if (peers_.empty()) return "";
  std::unique_lock lock(mutex_);
  say_to_all({.kind = Message::Kind::question, .number = ++question_});
  const auto silent = [&](size_t rank) { return is_there(rank) && states_[rank].asked != question_; };
  const auto all_answered = [&] {
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      if (silent(rank)) return false;
    }
    return true;
  };
  changed_.wait_for(lock, kAnswerTime, all_answered);

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

uint64_t RollCall::own_view() const {
  std::string text = "gone";
  for (size_t rank = 0; rank < states_.size(); ++rank) {
    if (states_[rank].lost || states_[rank].left) text += fmt::format(" {}", rank);
  }
  return hash_name(text) | 1;
}

std::vector<int> RollCall::agree_on_survivors(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::unique_lock lock(mutex_);
  uint64_t said = 0;
  for (;;) {
    num_known_.store(num_lost_.load());
    const uint64_t mine = own_view();
    if (mine != said) say_to_all({.kind = Message::Kind::view, .number = mine});
    said = mine;
    std::vector<int> survivors;
    std::string others;
    for (size_t rank = 0; rank < states_.size(); ++rank) {
      if (is_there(rank) && states_[rank].view != mine)
        others += fmt::format("{}{}", others.empty() ? "" : ", ", name(rank));
      if (is_there(rank) || rank == static_cast<size_t>(rank_)) survivors.push_back(static_cast<int>(rank));
    }
    if (others.empty()) return survivors;
    if (std::chrono::steady_clock::now() > end) {
      throw Error(ErrorKind::timeout, fmt::format("waited {:.0f} s for {} to agree on who is left", seconds, others));
    }
    changed_.wait_for(lock, kIdle);
  }
}

void RollCall::leave(bool job_ends) {
  const std::lock_guard lock(mutex_);
  say_to_all({.kind = job_ends ? Message::Kind::job_ends : Message::Kind::farewell});
}

void RollCall::end_job(int code) {
  const std::lock_guard lock(mutex_);
  say_to_all({.kind = Message::Kind::end_job, .code = code});
  end_process(code);
}

void RollCall::end_process(int code) {
  // One that is stopped hears nothing, and mpirun would wait for it.
  for (const Peer& peer : peers_) {
    if (peer.socket.is_open()) kill_if_stopped(static_cast<pid_t>(peer.pid));
  }
  flush_if_free(stdout);
  end_mpirun();  // by itself it would give 0
  std::_Exit(code);
}

}  // namespace cadre
