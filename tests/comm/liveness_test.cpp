// SPDX-License-Identifier: Apache-2.0
// Liveness among the processes of a job. Deaths are in tests/launch/recover_test.sh.
#include <gtest/gtest.h>

#include <optional>
#include <thread>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/transport.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::liveness_test {
namespace {

void meet(const Communicator& world) {
  Request together = world.barrier();
  wait(together);
}

TEST(Liveness, says_where_the_others_are) {
  if (!test::runs_under_mpi()) return;  // one a process
  test::on_ranks([](Communicator& world) {
    start_liveness(world.transport());
    Liveness* const processes = world.job().liveness();
    ASSERT_EQ(processes->failure(), "");
    world.job().tracer().switch_to({.step = 5, .layer = 2, .phase = "experts"});
    meet(world);
    if (world.rank() == 0) {
      const std::string late = processes->describe_late();
      // Those that compute, or, where all wait, all of them.
      if (world.size() > 1) {
        EXPECT_NE(late.find("rank "), std::string::npos) << late;
        EXPECT_NE(late.find("at step 5, layer 2, experts for 0 s"), std::string::npos) << late;
      }
      // A wait that fails says the same.
      if (world.size() > 1) {
        std::byte never{};
        Request request = world.transport().receive(std::span(&never, 1), 1, 9);
        try {
          wait(request, 0.01, {.step = 6, .phase = "combine"});
          ADD_FAILURE() << "the wait ended";
        } catch (const Error& error) {
          EXPECT_NE(error.text().find("step 6, combine: waited 0 s in receive of 1 bytes"), std::string::npos)
              << error.text();
          EXPECT_NE(error.text().find("; rank "), std::string::npos) << error.text();
        }
        meet(world);
        wait(request);
        return meet(world);
      }
    }
    meet(world);
    if (world.rank() == 1) {
      const std::byte sent{};
      Request request = world.transport().send(std::span(&sent, 1), 0, 9);
      wait(request);
    }
    meet(world);
  });
}

TEST(Liveness, a_farewell_is_no_death) {
  if (!test::runs_under_mpi()) return;
  test::on_ranks([](Communicator& world) {
    start_liveness(world.transport());
    meet(world);
    if (world.rank() == world.size() - 1) world.job().set_liveness(nullptr);
    Liveness* const processes = world.job().liveness();
    std::this_thread::sleep_for(std::chrono::milliseconds(400));  // longer than a death takes to be known
    if (processes != nullptr) {
      EXPECT_FALSE(processes->news());
      EXPECT_TRUE(processes->lost().empty());
      const std::vector<int> left = processes->agree_on_survivors(10.0);
      EXPECT_EQ(static_cast<int>(left.size()), world.size() - 1);
    }
    meet(world);
  });
}

TEST(Liveness, agreement_is_of_all_and_has_a_deadline) {
  if (!test::runs_under_mpi()) return;
  test::on_ranks([](Communicator& world) {
    if (world.size() == 1) return;
    start_liveness(world.transport());
    Liveness* const processes = world.job().liveness();
    meet(world);
    if (world.rank() == 0) {
      EXPECT_THROW(processes->agree_on_survivors(0.2), Error);  // the other ranks do not call it
    }
    meet(world);
    EXPECT_EQ(static_cast<int>(processes->agree_on_survivors(10.0).size()), world.size());
    meet(world);
  });
}

}  // namespace
}  // namespace cadre::liveness_test
