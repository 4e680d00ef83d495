// SPDX-License-Identifier: Apache-2.0
// Two jobs in one process, at the same time: deadlines, traces, pollers and abandoned operations of one are none of the
// other's.
#include "comm/job/job_context.hpp"

#include <gtest/gtest.h>

#include <thread>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/local.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::job_context_test {
namespace {

struct Outcome {
  std::string error;
  double seconds = 0.0;
};

// Two thread ranks; rank 1 sends nothing until rank 0 has waited in vain for `phase`.
Outcome run_job(double deadline_seconds, int64_t step, const char* phase) {
  Outcome outcome;
  const JobContext job(deadline_seconds);
  run_local_ranks(job, 2, [&](std::unique_ptr<Transport> transport) {
    EXPECT_EQ(transport->job().deadline_seconds(), deadline_seconds);
    transport->job().tracer().switch_to({.step = step, .phase = phase});
    if (transport->rank() == 0) {
      const auto never = std::make_shared<std::byte>();
      Request request = transport->receive(std::span(never.get(), 1), 1, 5);
      request.keep(never);
      const int64_t begin = trace_clock_ns();
      try {
        wait(request);
      } catch (const Error& error) {
        outcome = {error.text(), static_cast<double>(trace_clock_ns() - begin) * 1e-9};
      }
      EXPECT_EQ(transport->job().tracer().whereabouts().at.step, step);
    }
    transport->job().set_deadline(10.0);  // for the other rank
    Request together = transport->barrier();
    wait(together);
  });
  return outcome;
}

TEST(JobContext, TwoJobsOfOneProcessHaveDeadlinesOfTheirOwn) {
  if (test::runs_under_mpi()) return;
  Outcome hurried, patient;
  std::thread first([&] { hurried = run_job(0.3, 3, "dispatch"); });
  std::thread second([&] { patient = run_job(1.2, 8, "combine"); });
  first.join();
  second.join();
  EXPECT_TRUE(hurried.error.starts_with("step 3, dispatch: waited 0 s")) << hurried.error;
  EXPECT_TRUE(patient.error.starts_with("step 8, combine: waited 1 s")) << patient.error;
  EXPECT_GE(hurried.seconds, 0.3);
  EXPECT_GE(patient.seconds, 1.2);
}

// A recorder belongs to the thread that attached it: another thread that completes a request writes nothing into it.
TEST(JobContext, TracesOnTheThreadThatAttachedTheRecorder) {
  JobContext job;
  TraceRecorder recorder(8);
  {
    const TraceScope scope(job.tracer(), recorder);
    EXPECT_EQ(job.tracer().recorder(), &recorder);
    std::thread([&] { EXPECT_EQ(job.tracer().recorder(), nullptr); }).join();
  }
  EXPECT_EQ(job.tracer().recorder(), nullptr);
}

}  // namespace
}  // namespace cadre::job_context_test
