// SPDX-License-Identifier: Apache-2.0
// This process as a part of its job: alone, or one of the ranks that mpirun or srun started. Knows how a job ends with
// an error: one line on stderr, every rank gone, a code that tells the kind (README.md lists them), also in the file that
// CADRE_EXIT_FILE names.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

#include "comm/base/check.hpp"
#include "comm/base/fields.hpp"
#include "comm/group/communicator.hpp"
#include "comm/job/job_context.hpp"
#include "comm/transport/mpi.hpp"

namespace cadre {

// --ranks of a command; 0 means those of the job.
Field ranks_option(int64_t& thread_ranks);

class Job {
 public:
  // The one Job of a process lives as long as `main`. Starts MPI where a launcher started the process, or with `always_mpi`; a
  // process alone is a world of one rank, and saves the time of MPI_Init.
  Job(int* argc, char*** argv, bool always_mpi);
  ~Job();
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  int rank() const { return failures_->rank(); }
  int size() const { return failures_->size(); }
  JobContext& context() const { return *context_; }
  MpiSession& mpi() const { return *mpi_; }  // of a job of several processes

  // Throws when a launcher started several processes that MPI does not know to be one job.
  void check_launcher() const;
  // Of srun without a plug-in for MPI, where MPI_Init would end the process with many lines of its own: prints one, on rank 0,
  // and returns the exit code. 0 where nothing is known to be wrong.
  static int refuse_launcher();

  // Number of ranks of on_ranks. Throws on thread ranks in a job of several processes.
  int num_ranks(int64_t thread_ranks) const;
  // Runs `body` with the world of each rank: the processes of the job, or that many threads of this process.
  void on_ranks(int64_t thread_ranks, const std::function<void(Communicator)>& body) const;

  // Prints the error and returns the exit code; in a job of several processes ends all of them instead. When ranks fail
  // together, the lowest speaks.
  int fail(const Error& error) const;

 private:
  bool lower_rank_failed() const;
  std::unique_ptr<Transport> make_world() const;

  std::unique_ptr<JobContext> context_;
  std::unique_ptr<MpiSession> mpi_;      // null in a process alone
  std::unique_ptr<Transport> failures_;  // carries nothing but news of failure
};

// "rank 2 on n0: " of a process that a launcher started; else empty. Needs no MPI.
std::string rank_of_process();

// The Error that is, or stands for, this exception.
Error as_error(const std::exception_ptr& exception);

// What the process was last at; nothing before there is a Job. For handlers of signals.
Position position_of_process();

// For std::set_terminate: prints what was thrown, and the stack, and ends the job.
[[noreturn]] void terminate_job();

// What a process says when it dies of a mistake: which rank, where in the run, and the stack.

// From now on SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT print that and then end the process as they would have. To be
// called after MPI has started, which has handlers of its own.
void report_crashes();

}  // namespace cadre
