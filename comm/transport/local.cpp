// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/local.hpp"

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/job/job_context.hpp"

namespace cadre {
namespace {

// What the threads of run_local_ranks share, and outlives those that are left behind.
struct RunningRanks {
  std::function<void(std::unique_ptr<Transport>)> body;
  std::vector<std::unique_ptr<JobContext>> jobs;
  RankFailed failed = std::make_shared<std::atomic<bool>>(false);
  std::vector<std::unique_ptr<Transport>> transports;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> done;
  std::exception_ptr first;

  void run(int rank) {
    std::exception_ptr error;
    try {
      body(std::move(transports[static_cast<size_t>(rank)]));
    } catch (...) {
      error = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    done[static_cast<size_t>(rank)] = true;
    if (error != nullptr) {
      if (first == nullptr) first = error;
      failed->store(true);
    }
    changed.notify_all();
  }

  bool all_done() const {
    return std::ranges::all_of(done, [](bool each) { return each; });
  }

  double longest_deadline() const {
    double longest = 0.0;
    for (const auto& job : jobs) longest = std::max(longest, job->deadline_seconds());
    return longest;
  }

  // Where a rank failed, those that do not come to a wait within the deadline are left behind.
  bool come_to_an_end() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [this] { return all_done() || first != nullptr; });
    const auto time = std::chrono::duration<double>(longest_deadline());
    return changed.wait_for(lock, time, [this] { return all_done(); });
  }

  // The first error, and who was left behind.
  Error error_and_late() {
    const std::lock_guard lock(mutex);
    std::string late;
    for (size_t rank = 0; rank < done.size(); ++rank) {
      if (!done[rank]) late += fmt::format("{} {}", late.empty() ? "" : ",", rank);
    }
    try {
      std::rethrow_exception(first);
    } catch (const Error& error) {
      return {error.kind(),
              fmt::format("{}; still busy {:.0f} s later: rank{}", error.text(), longest_deadline(), late),
              error.hint()};
    } catch (const std::exception& error) {
      return {ErrorKind::internal,
              fmt::format("{}; still busy {:.0f} s later: rank{}", error.what(), longest_deadline(), late)};
    }
  }
};

void hand_over(Buffer bytes, Mailbox::Receive& receive) {
  receive.bytes = std::move(bytes);
  receive.arrived.store(true, std::memory_order_release);
}

}  // namespace

void run_local_ranks(const JobContext& job, int num_ranks,
                     const std::function<void(std::unique_ptr<Transport>)>& body) {
  CADRE_CHECK(num_ranks >= 1, fmt::format("{} ranks", num_ranks), "use at least one");
  const auto running = std::make_shared<RunningRanks>();
  running->body = body;
  running->done.resize(static_cast<size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    running->jobs.push_back(std::make_unique<JobContext>(job.deadline_seconds()));
  }
  running->transports = make_local_world(running->jobs, running->failed);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < num_ranks; ++rank) threads.emplace_back([running, rank] { running->run(rank); });
  if (!running->come_to_an_end()) {
    for (std::thread& thread : threads) thread.detach();
    job.left_calls_behind()->store(true);
    throw Error(running->error_and_late());
  }
  for (std::thread& thread : threads) thread.join();
  if (running->first != nullptr) std::rethrow_exception(running->first);
}

void run_local_ranks(int num_ranks, const std::function<void(std::unique_ptr<Transport>)>& body) {
  run_local_ranks(JobContext(), num_ranks, body);
}

void Mailbox::put(int source, int tag, Buffer bytes) {
  const std::lock_guard lock(mutex_);
  for (auto waiting = receives_.begin(); waiting != receives_.end();) {
    const std::shared_ptr<Receive> receive = waiting->lock();
    if (receive == nullptr) {
      waiting = receives_.erase(waiting);
      continue;
    }
    if (receive->source == source && receive->tag == tag) {
      receives_.erase(waiting);
      return hand_over(std::move(bytes), *receive);
    }
    ++waiting;
  }
  messages_.push_back({source, tag, std::move(bytes)});
}

std::shared_ptr<Mailbox::Receive> Mailbox::receive(int source, int tag) {
  const auto receive = std::make_shared<Receive>();
  receive->source = source;
  receive->tag = tag;
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(
      messages_, [&](const Message& message) { return message.source == source && message.tag == tag; });
  if (found == messages_.end()) {
    receives_.push_back(receive);
  } else {
    hand_over(std::move(found->bytes), *receive);
    messages_.erase(found);
  }
  return receive;
}

}  // namespace cadre
