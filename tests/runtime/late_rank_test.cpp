// SPDX-License-Identifier: Apache-2.0
// A rank that is stopped before a reduction of a step for longer than the deadline, and then goes on: for each reduction in
// turn, the others give up with an error that names it, and what completes late writes into memory that is still there
// (AddressSanitizer sees where). The same with a rank that is killed, once a program: killed_rank_test.sh.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "comm/transport/forwarding.hpp"
#include "comm/transport/local.hpp"
#include "comm/transport/transport.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::late_rank_test {
namespace {

constexpr int kLateRank = 1;

// CADRE_TEST_DEADLINE_S; a rank is stopped for half as long again.
double deadline_seconds() {
  const char* const text = std::getenv("CADRE_TEST_DEADLINE_S");
  return text == nullptr ? 1.0 : std::stod(text);
}

struct Stop {
  int64_t before = -1;  // the reduction of this number, from 0; -1: none
  bool kill = false;
  int64_t num_reductions = 0;
};

class StoppingTransport final : public ForwardingTransport {
 public:
  StoppingTransport(std::unique_ptr<Transport> base, std::shared_ptr<Stop> stop)
      : ForwardingTransport(std::move(base)), stop_(std::move(stop)) {}

  std::string_view name() const override { return base().name(); }
  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    if (stop_->num_reductions++ == stop_->before) {
      if (stop_->kill) static_cast<void>(std::raise(SIGKILL));
      std::this_thread::sleep_for(std::chrono::duration<double>(1.5 * deadline_seconds()));
    }
    return base().all_reduce(data, count, dtype, op);
  }
  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    return base().all_to_all_rows(send, receive, row_bytes);
  }
  std::unique_ptr<Transport> split(int color, int key) override {
    return std::make_unique<StoppingTransport>(base().split(color, key), stop_);
  }

 private:
  std::shared_ptr<Stop> stop_;
};

RunConfig config_of_test(const std::filesystem::path& folder) {
  RunConfig config = test::small_run(folder);
  config.exchange.strategy = "flat";
  config.exchange.deadline_s = deadline_seconds();
  return config;
}

// One step on a world of its own. The text of the error, and how many reductions the step began on this rank.
struct Step {
  std::string error;
  ErrorKind kind = ErrorKind::internal;
  int64_t num_reductions = 0;
};
Step run_step(std::unique_ptr<Transport> world, const std::filesystem::path& folder, int64_t stop_before,
              bool kill = false) {
  const auto stop = std::make_shared<Stop>();
  const bool is_late = world->rank() == kLateRank;
  Step step;
  try {
    const RunConfig config = config_of_test(folder);
    Trainer trainer(Communicator(std::make_unique<StoppingTransport>(std::move(world), stop), "world"), config);
    *stop = {.before = is_late ? stop_before : -1, .kill = kill};
    trainer.step();
  } catch (const Error& error) {
    step.error = error.text();
    step.kind = error.kind();
    EXPECT_TRUE(error.kind() == ErrorKind::timeout || is_late || kill) << error.what();
  }
  step.num_reductions = stop->num_reductions;
  return step;
}

TEST(LateRank, is_named_and_writes_into_nothing_that_is_gone) {
  if (!test::runs_under_mpi()) {  // the other ranks of a process end with the first that fails
    const test::TemporaryDirectory folder;
    test::write_file(folder / "text", test::some_text());
    int64_t num_reductions = 1;
    for (int64_t stop_before = -1; stop_before < num_reductions; ++stop_before) {
      std::string error;
      try {
        run_local_ranks(3, [&](std::unique_ptr<Transport> transport) {
          const int rank = transport->rank();
          const Step step = run_step(std::move(transport), folder.path(), stop_before);
          if (rank != 0) return;
          error = step.error;
          if (stop_before < 0) num_reductions = step.num_reductions;
        });
      } catch (const Error&) {
        FAIL() << "a rank did not end";
      }
      if (stop_before < 0) {
        EXPECT_EQ(error, "");
        ASSERT_GT(num_reductions, 3);
      } else {
        EXPECT_NE(error.find("rank 1 (expected"), std::string::npos) << "reduction " << stop_before << ": " << error;
      }
    }
    return;
  }
  test::on_ranks(
      [](Communicator& world) {
        const test::RunFolder folder(world);
        start_liveness(world.transport());
        world.job().set_deadline(30.0);
        const auto meet = [&] {
          Request together = world.barrier();
          wait(together, 30.0);
        };
        int64_t num_reductions = 1;
        for (int64_t stop_before = -1; stop_before < num_reductions; ++stop_before) {
          const Step step = run_step(world.transport().split(0, world.rank()), folder.path(), stop_before);
          if (stop_before < 0) {
            ASSERT_EQ(step.error, "");
            num_reductions = wait(world.all_reduce(step.num_reductions, ReduceOp::min));
            ASSERT_GT(num_reductions, 3);
          } else if (world.rank() != kLateRank) {
            EXPECT_NE(step.error.find("rank 1"), std::string::npos)
                << "reduction " << stop_before << ": " << step.error;
          }
          world.job().set_deadline(30.0);
          meet();
        }
        world.job().set_liveness(nullptr);
      },
      {3});
}

// CADRE_TEST_KILL_BEFORE: the number of a reduction. Ends the process: MPI cannot be ended without the killed rank. Each
// rank that is left prints one line that begins with "named" or, where the step has fewer reductions, "complete".
TEST(KilledRank, is_named_by_the_others) {
  const char* const number = std::getenv("CADRE_TEST_KILL_BEFORE");
  if (!test::runs_under_mpi() || number == nullptr) GTEST_SKIP() << "run by killed_rank_test.sh";
  test::on_ranks(
      [number](Communicator& world) {
        const test::RunFolder folder(world);
        start_liveness(world.transport());
        const Step step = run_step(world.transport().split(0, world.rank()), folder.path(), std::stoll(number), true);
        const bool is_named = step.kind == ErrorKind::lost_rank && step.error.find("rank 1 ") != std::string::npos;
        const char* const verdict = step.error.empty() ? "complete" : is_named ? "named" : "WRONG";
        std::fputs(fmt::format("{}, rank {}: {}\n", verdict, world.rank(), step.error).c_str(), stdout);
        std::fflush(stdout);
        std::_Exit(0);
      },
      {3});
}

}  // namespace
}  // namespace cadre::late_rank_test
