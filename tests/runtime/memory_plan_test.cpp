// SPDX-License-Identifier: Apache-2.0
// The memory of a rank against what a run takes of its arena.
#include "runtime/train/memory_plan.hpp"

#include <gtest/gtest.h>

#include "comm/transport/local.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre {
namespace {

using test::small_run;
using test::some_text;

// The dry run walks the code that the step walks, so only the raggedness of routing tells them apart.
TEST(MemoryPlan, foresees_the_memory_of_a_step) {
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  config.model.topk_method = TopkMethod::greedy;
  for (const int num_ranks : {1, 2, 4}) {
    SCOPED_TRACE(num_ranks);
    run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
      const int rank = transport->rank();
      const size_t planned = plan_memory(config, Topology::uniform(1, num_ranks), rank).activation_bytes();
      Trainer trainer(Communicator(std::move(transport), "world"), config);
      trainer.step();
      const auto measured = static_cast<double>(trainer.worker().arena().peak_bytes());
      EXPECT_GT(planned, 100000U);
      EXPECT_NEAR(static_cast<double>(planned), measured, 0.25 * measured) << "rank " << rank;
    });
  }
}

// An evaluation keeps no more than the plan of a step, whatever that computes again, and has the same loss.
TEST(MemoryPlan, foresees_the_memory_of_an_evaluation) {
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", some_text());
  RunConfig config = small_run(folder.path());
  config.model.num_hidden_layers = 16;
  config.data.validation_fraction = 0.3;
  std::vector<double> losses;
  for (const char* recompute : {"none", "activations", "every:2", "layer"}) {
    SCOPED_TRACE(recompute);
    config.train.recompute = recompute;
    test::on_one_rank([&](Communicator world) {
      Trainer trainer(std::move(world), config);
      losses.push_back(trainer.evaluate());
      EXPECT_LE(trainer.worker().arena().peak_bytes(),
                plan_memory(config, Topology::uniform(1, 1), 0).activation_bytes());
    });
  }
  EXPECT_EQ(losses, std::vector<double>(4, losses.front()));
}

}  // namespace
}  // namespace cadre
