// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/recovery.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/liveness/liveness.hpp"

namespace cadre {
namespace {

using Clock = std::chrono::steady_clock;

// An operation that fails because a peer is gone may do so before liveness knows.
constexpr std::chrono::seconds kNewsTime{2};
constexpr std::chrono::milliseconds kLook{200};

// Whether the error is what a death looks like from here.
bool comes_from_death(const Liveness& processes, const Error& error) {
  if (error.kind() == ErrorKind::lost_rank) return true;
  if (error.kind() == ErrorKind::input || error.kind() == ErrorKind::numerics) return false;
  const auto end = Clock::now() + kNewsTime;
  while (!processes.news() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return processes.news();
}

Error to_restart(const Error& error) {
  return {ErrorKind::restart, fmt::format("the ranks that are left cannot go on: {}", error.what()),
          "start the job again, as launch/supervise does: the last checkpoint stands"};
}

}  // namespace

// Ends the job when a rank does not come back to its senses after a death: MPI may hold it in a call forever.
class Watchdog {
 public:
  Watchdog(Liveness& processes, double seconds)
      : processes_(processes), limit_(seconds), thread_([this](const std::stop_token& stop) { watch(stop); }) {}

  void recovery_begins() { recovers_.store(true); }
  void recovery_ends() { recovers_.store(false); }

 private:
  void watch(const std::stop_token& stop) {
    std::optional<Clock::time_point> since;
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(kLook);
      if (!processes_.news() && !recovers_.load()) {
        since.reset();
        continue;
      }
      if (!since) since = Clock::now();
      if (Clock::now() - *since < limit_) continue;
      const Error error =
          to_restart({ErrorKind::timeout, fmt::format("this one has not come back for {:.0f} s after {} died",
                                                      limit_.count(), processes_.describe_lost())});
      static_cast<void>(std::fputs(fmt::format("cadre: error: {}\n", error.what()).c_str(), stderr));
      processes_.end_job(exit_code(error.kind()));
    }
  }

  Liveness& processes_;
  std::chrono::duration<double> limit_;
  std::atomic<bool> recovers_ = false;
  std::jthread thread_;
};

double Recovery::stands() {
  watchdog_.recovery_ends();
  return std::chrono::duration<double>(Clock::now() - noticed_).count();
}

void check_recovery(const RunConfig& config, int num_ranks, const JobContext& job) {
  if (config.recover != "survivors" || num_ranks == 1) return;
  const Liveness* const processes = job.liveness();
  if (!mpi_survives_lost_ranks()) {
    throw Error(ErrorKind::environment,
                "recover = survivors, but the launcher ends the job when one of its processes dies",
                "start it with Open MPI's mpirun --enable-recovery, or set recover=none");
  }
  if (!processes->failure().empty()) {
    throw Error(ErrorKind::environment, fmt::format("recover = survivors, but {}", processes->failure()),
                "open TCP between the hosts of the job, or set recover=none");
  }
}

void run_on_survivors(MpiSession& mpi, JobContext& job, const std::function<void(Communicator, Recovery&)>& body) {
  Liveness& processes = *job.liveness();
  std::unique_ptr<Transport> world = mpi.make_world(job);
  Watchdog watchdog(processes, 2.0 * job.deadline_seconds());
  Recovery recovery(watchdog);
  for (;;) {
    recovery.noticed_ = Clock::now();
    try {
      if (world == nullptr) world = mpi.make_survivors(job, processes.agree_on_survivors(job.deadline_seconds()));
      return body(Communicator(std::move(world), "world"), recovery);
    } catch (const Error& error) {
      if (!comes_from_death(processes, error)) {
        if (recovery.num_lost() == 0) throw;
        throw Error(to_restart(error));
      }
      recovery.story_ = error.text();
    }
    watchdog.recovery_begins();
    world = nullptr;
    recovery.num_lost_ = static_cast<int>(processes.lost().size());
  }
}

RunConfig config_of_survivors(const RunConfig& config, int num_ranks, bool saved) {
  RunConfig fewer = config;
  if (saved) fewer.checkpoint.resume = "auto";
  const int64_t row = num_ranks / std::max<int64_t>(1, config.parallel.pipeline);
  if (config.parallel.expert > 0 && row % config.parallel.expert != 0) fewer.parallel.expert = 0;
  fewer.parallel.placement.clear();
  try {
    check(fewer, num_ranks);
  } catch (const Error& error) {
    throw Error(to_restart(error));
  }
  return fewer;
}

}  // namespace cadre
