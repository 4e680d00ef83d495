// SPDX-License-Identifier: Apache-2.0
// main of every test program: [FOLDER/UNIT] [GoogleTest's options]. With the first, only the tests of FOLDER/UNIT_test.cpp.
// Under mpirun only rank 0 reports passes; a failure on any rank fails the job.
#include <gtest/gtest.h>

#include <cstdio>
#include <optional>
#include <string>
#include <string_view>

#include "comm/transport/mpi.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/ranks.hpp"

namespace {

// GoogleTest's filter for the tests of a file; empty when there are none.
std::string tests_of(std::string_view unit) {
  const std::string file = "/" + std::string(unit) + "_test.cpp";
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  std::string filter;
  for (int s = 0; s < all.total_test_suite_count(); ++s) {
    const testing::TestSuite& suite = *all.GetTestSuite(s);
    for (int t = 0; t < suite.total_test_count(); ++t) {
      const testing::TestInfo& test = *suite.GetTestInfo(t);
      if (std::string_view(test.file()).ends_with(file)) filter += std::string(suite.name()) + "." + test.name() + ":";
    }
  }
  return filter;
}

}  // namespace

int main(int argc, char** argv) {
  cadre::apply_cpu_limit();
  cadre::JobContext job;  // outlives MPI
  std::optional<cadre::MpiSession> session;
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1 && GTEST_FLAG_GET(filter) == "*") {
    GTEST_FLAG_SET(filter, tests_of(argv[1]));
    if (GTEST_FLAG_GET(filter).empty()) {
      std::fprintf(stderr, "no test of %s in %s\n", argv[1], argv[0]);
      return 2;
    }
  }
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
