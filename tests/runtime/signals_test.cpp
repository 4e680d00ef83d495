// SPDX-License-Identifier: Apache-2.0
// A signal to one rank stops all of them after the same step, with a checkpoint that goes on to the bit; also from inside
// an evaluation.
#include "runtime/train/signals.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <csignal>
#include <fstream>
#include <optional>
#include <set>
#include <utility>

#include "comm/job/wait.hpp"
#include "runtime/observe/trace_file.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::signals_test {
namespace {

namespace fs = std::filesystem;
using test::RunFolder;
using test::small_run;

// What the run wrote down of each step and evaluation, by rank 0 alone.
std::vector<std::pair<std::string, double>> logged(const RunConfig& config) {
  std::ifstream file(fs::path(config.out) / "metrics.jsonl");
  std::vector<std::pair<std::string, double>> lines;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);
    const char* key = json.contains("loss") ? "loss" : "validation_loss";
    lines.emplace_back(fmt::format("{} {}", key, json["step"].get<int>()), json[key].get<double>());
  }
  return lines;
}

bool is_finished(const RunConfig& config) { return fs::exists(fs::path(config.out) / "FINISHED"); }

// The run that nobody stops.
std::vector<std::pair<std::string, double>> whole_run(const Communicator& world, RunConfig config) {
  config.out += ".whole";
  Trainer(world.duplicate("whole"), config).run();
  return world.rank() == 0 ? logged(config) : std::vector<std::pair<std::string, double>>{};
}

void meet(const Communicator& world) {
  Request all_here = world.barrier();
  wait(all_here);
}

RunConfig run_of_six_steps(const RunFolder& folder) {
  RunConfig config = small_run(folder.path());
  config.train.steps = 6;
  config.train.eval_every = 2;
  config.log.every = 100;
  config.checkpoint.resume = "auto";
  config.exchange.strategy = "flat";
  return config;
}

TEST(StopSignals, raise_a_flag_and_leave_no_trace) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "one process is enough";
  EXPECT_FALSE(stop_requested());
  for (const int signal : {SIGINT, SIGUSR1, SIGUSR2, SIGTERM}) {
    const StopSignals signals;
    EXPECT_EQ(std::raise(SIGCONT), 0);
    EXPECT_FALSE(stop_requested()) << "SIGCONT is no request";
    EXPECT_EQ(std::raise(signal), 0);
    EXPECT_TRUE(stop_requested()) << signal;
  }
  EXPECT_FALSE(stop_requested());
  struct sigaction now = {};
  ASSERT_EQ(sigaction(SIGTERM, nullptr, &now), 0);
  EXPECT_EQ(now.sa_handler, SIG_DFL);
}

TEST(StopSignals, let_a_second_interrupt_end_the_process) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "one process is enough";
  const StopSignals signals;
  EXPECT_EQ(std::raise(SIGINT), 0);
  struct sigaction now = {};
  ASSERT_EQ(sigaction(SIGINT, nullptr, &now), 0);
  EXPECT_EQ(now.sa_handler, SIG_DFL);
}

// A product that a signal interrupts may have data beyond the end of its stack.
TEST(StopSignals, leave_the_stack_of_the_computation_alone) {
  std::vector<std::byte> memory(size_t{1} << 16, std::byte{0xA5});
  stack_t alternate = {};
  stack_t before = {};
  alternate.ss_sp = memory.data();
  alternate.ss_size = memory.size();
  ASSERT_EQ(sigaltstack(&alternate, &before), 0);
  {
    const StopSignals signals;
    EXPECT_EQ(std::raise(SIGUSR1), 0);
    EXPECT_TRUE(stop_requested());
  }
  ASSERT_EQ(sigaltstack(&before, nullptr), 0);
  EXPECT_GT(std::ranges::count_if(memory, [](std::byte byte) { return byte != std::byte{0xA5}; }), 0);
}

// Takes the signal before its first step. Under MPI only the last rank gets it; ranks of threads share the flag, and look
// at it when they come by. How many steps are done when it stops.
int64_t run_until_signal(const Communicator& world, const RunConfig& config) {
  std::optional<StopSignals> signals;
  if (test::runs_under_mpi() || world.rank() == 0) signals.emplace();
  meet(world);
  Trainer trainer(world.duplicate("stopped"), config);
  const bool is_last = world.rank() == world.size() - 1;
  EXPECT_EQ(is_last ? std::raise(SIGUSR1) : 0, 0);
  meet(world);
  trainer.run();
  meet(world);
  return trainer.steps_done();
}

TEST(StopSignals, all_ranks_save_after_the_same_step_and_go_on_with_the_same_bits) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = run_of_six_steps(folder);
        const auto expected = whole_run(world, config);
        EXPECT_EQ(run_until_signal(world, config), 1);
        EXPECT_EQ(run_until_signal(world, config), 2);
        // An evaluation is due after step 2, and given up.
        EXPECT_EQ(run_until_signal(world, config), 2);
        EXPECT_FALSE(is_finished(config));
        meet(world);
        Trainer(world.duplicate("resumed"), config).run();
        if (world.rank() != 0) return;
        EXPECT_TRUE(is_finished(config));
        ASSERT_EQ(expected.size(), 9U) << "six steps, three evaluations";
        EXPECT_EQ(logged(config), expected);
      },
      {1, 2, 3});
}

// The last evaluation is not lost either: without it the run is not finished.
TEST(StopSignals, a_run_that_is_stopped_after_its_last_step_is_evaluated_by_the_next_one) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = run_of_six_steps(folder);
        config.train.steps = 1;
        EXPECT_EQ(run_until_signal(world, config), 1);
        EXPECT_FALSE(is_finished(config));
        meet(world);
        Trainer(world.duplicate("resumed"), config).run();
        if (world.rank() != 0) return;
        EXPECT_TRUE(is_finished(config));
        ASSERT_EQ(logged(config).size(), 2U);
        EXPECT_EQ(logged(config).back().first, "validation_loss 1");
      },
      {2});
}

std::set<int64_t> traced_steps(const RankTrace& trace) {
  std::set<int64_t> steps;
  for (const TracedEvent& event : trace.events) {
    if (event.kind == TraceKind::step) steps.insert(event.step);
  }
  return steps;
}

// After its first step the weights are no numbers, and the second step ends the run: its activities are in the traces, and
// the first step is whole.
TEST(TracedWindow, an_error_in_it_leaves_the_traces_as_far_as_they_got) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = run_of_six_steps(folder);
        config.train.learning_rate = config.train.min_learning_rate = 1e38;
        config.train.grad_clip = 0.0;
        config.train.max_skipped_steps = 1;
        config.trace.first_step = 1;
        config.trace.steps = 4;
        config.trace.compare = false;
        Trainer trainer(world.duplicate("fails"), config);
        try {
          trainer.run();
          ADD_FAILURE() << "no error";
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::numerics) << error.what();
        }
        EXPECT_EQ(trainer.steps_done(), 1);
        EXPECT_FALSE(trainer.has_traces()) << "not of whole steps";
        meet(world);
        const std::vector<RankTrace> traces = read_traces(config.out);
        ASSERT_EQ(traces.size(), static_cast<size_t>(world.size()));
        for (const RankTrace& trace : traces) {
          EXPECT_EQ(traced_steps(trace), (std::set<int64_t>{1}));
          EXPECT_TRUE(std::ranges::any_of(trace.events, [](const TracedEvent& event) {
            return event.step == 2 && event.kind == TraceKind::compute;
          }));
        }
      },
      {1, 2});
}

// What was recorded until then is not lost; what a run that goes on from there records does not replace it.
TEST(StopSignals, the_steps_traced_so_far_are_written) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        RunConfig config = run_of_six_steps(folder);
        config.trace.first_step = 1;
        config.trace.steps = 4;
        config.trace.compare = false;
        EXPECT_EQ(run_until_signal(world, config), 1);
        const std::string mine = fmt::format("rank{:05}.json", world.rank());
        EXPECT_EQ(traced_steps(read_trace(fs::path(config.out) / "trace" / mine)), (std::set<int64_t>{1}));
        meet(world);
        Trainer(world.duplicate("resumed"), config).run();
        meet(world);
        EXPECT_EQ(traced_steps(read_trace(fs::path(config.out) / "trace" / mine)), (std::set<int64_t>{2, 3, 4}));
        EXPECT_EQ(traced_steps(read_trace(fs::path(config.out) / "trace.before_step_2" / mine)),
                  (std::set<int64_t>{1}));
      },
      {2});
}

}  // namespace
}  // namespace cadre::signals_test
