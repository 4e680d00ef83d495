// SPDX-License-Identifier: Apache-2.0
// main of every test program. Under mpirun only rank 0 reports passes; a failure on any rank fails the job.
#include <gtest/gtest.h>

#include <optional>

#include "comm/transport/mpi.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/ranks.hpp"

int main(int argc, char** argv) {
  cadre::apply_cpu_limit();
  cadre::JobContext job;  // outlives MPI
  std::optional<cadre::MpiSession> session;
  testing::InitGoogleTest(&argc, argv);
  if (cadre::test::runs_under_mpi()) {
    session.emplace(&argc, &argv);
    cadre::test::use(*session, job);
    if (session->make_world(job)->rank() != 0) {
      testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
      delete listeners.Release(listeners.default_result_printer());
    }
  }
  return RUN_ALL_TESTS();
}
