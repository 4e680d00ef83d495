// SPDX-License-Identifier: Apache-2.0
// Rows of a pipeline that hold the same, and the least memory of a rank, against all rows and numbers worked out by hand.
#include "runtime/plan/row_roles.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "runtime/schedule/make_program.hpp"
#include "runtime/train/memory_plan.hpp"
#include "tests/support/planned_run.hpp"

namespace cadre::row_roles_test {
namespace {

using test::small_run;
using ::testing::ElementsAre;

// 16 layers in 4 rows, the first of them dense, all the same behind: the first row, those between, of which the second keeps most
// micro-batches, and the last.
TEST(RowRoles, rows_that_hold_the_same_are_planned_once) {
  RunConfig config = small_run();
  config.model.num_hidden_layers = 16;
  config.train.micro_batches = 8;
  config.parallel.pipeline = 4;
  config.parallel.schedule = "1f1b";
  EXPECT_THAT(rows_to_plan(config, program_of(config)), ElementsAre(0, 1, 3));
  config.train.recompute = "every:8";  // layers 0 and 8: of the first row and the third
  EXPECT_THAT(rows_to_plan(config, program_of(config)), ElementsAre(0, 1, 2, 3));
  config.train.recompute = "none";
  config.checkpoint.partner_copies = 1;  // what a partner holds counts too
  EXPECT_THAT(rows_to_plan(config, program_of(config)), ElementsAre(0, 1, 2, 3));
}

TEST(RowRoles, their_largest_plan_is_that_of_all_rows) {
  RunConfig config = small_run();
  config.model.num_hidden_layers = 16;
  config.train.batch = 64;
  config.train.micro_batches = 16;
  config.parallel.pipeline = 4;
  const Topology topology = Topology::uniform(2, 8);
  for (const std::string schedule : {"1f1b", "zb1p", "dualpipe", "dualpipev"}) {
    for (const std::string recompute : {"none", "every:3", "layer"}) {
      SCOPED_TRACE(schedule + " " + recompute);
      config.parallel.schedule = schedule;
      config.train.recompute = recompute;
      const auto bytes_of = [&](int row) { return plan_memory(config, topology, row * 4).total_bytes(); };
      size_t most = 0;
      for (int row = 0; row < 4; ++row) most = std::max(most, bytes_of(row));
      size_t planned = 0;
      for (const int row : rows_to_plan(config, program_of(config))) planned = std::max(planned, bytes_of(row));
      EXPECT_EQ(planned, most);
      const Grid grid = Grid::make(16, 4, 0);
      const double least = least_bytes(config, grid, program_of(config));
      EXPECT_LE(least, static_cast<double>(most));
      EXPECT_GT(least, 0.0);
    }
  }
}

// Of 2 rows the second has two mixtures: 256 + 64 + 96 and half of 8 experts of 96 elements each, values and gradients. On 2 of 4
// ranks a micro-batch has 2 sequences of 16; the first row keeps 2 of them, the second 1, of 2 layers and of rows on their way.
TEST(RowRoles, least_memory_is_of_weights_and_of_the_rows_that_layers_keep) {
  RunConfig config = small_run();
  config.model.num_hidden_layers = 4;
  config.parallel.pipeline = 2;
  config.parallel.schedule = "1f1b";
  const Grid grid = Grid::make(4, 2, 2);
  const double first = 2 * ((256 + 384) + (256 + 64 + 96 + 4 * 96)) + 2 * (2 + 2) * 2 * 16 * 8;
  const double second = 2 * 2 * (256 + 64 + 96 + 4 * 96) + 1 * (2 + 2) * 2 * 16 * 8;
  EXPECT_EQ(least_bytes(config, grid, program_of(config)), 4 * std::max(first, second));
  config.train.batch = 16;
  EXPECT_EQ(least_bytes(config, grid, program_of(config)), 4 * (first + 2 * (2 + 2) * 2 * 16 * 8));
}

}  // namespace
}  // namespace cadre::row_roles_test
