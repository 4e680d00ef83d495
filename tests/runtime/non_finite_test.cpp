// SPDX-License-Identifier: Apache-2.0
// A step without finite loss and gradient changes no bit on any rank, is counted and explained, and too many of them end
// the run. Weights that overflow products are what makes such steps here.
#include "runtime/train/non_finite.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <optional>

#include "layers/tensor/tensor.hpp"
#include "runtime/train/trainer.hpp"
#include "tests/support/closed_memory.hpp"
#include "tests/support/files.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::non_finite_test {
namespace {

using test::RunFolder;
using testing::AllOf;
using testing::HasSubstr;

RunConfig run_in(const RunFolder& folder) {
  RunConfig config = test::small_run(folder.path());
  config.exchange.strategy = "flat";
  config.train.max_skipped_steps = 3;
  return config;
}

// All that a step may change.
std::vector<std::byte> state_of(Trainer& trainer) {
  std::vector<std::byte> state;
  const auto add = [&](const Tensor& tensor) {
    state.insert(state.end(), tensor.raw(), tensor.raw() + tensor.bytes());
  };
  trainer.worker().gradients().complete_values();
  for (const Parameter* parameter : trainer.worker().store().parameters()) add(parameter->value);
  for (const Optimizer::Moments& moments : trainer.optimizer().moments()) add(moments.first), add(moments.second);
  return state;
}

// Sets the elements of some weights of this rank; puts them back as they were in the end.
class Poison {
 public:
  Poison(Trainer& trainer, const std::string& name, float value) {
    for (Parameter* parameter : trainer.worker().store().parameters()) {
      for (const ParameterPart& part : parameter->parts) {
        if (part.name != name) continue;
        values_ = parameter->value.rows(part.first_row, part.num_rows);
        parameter_ = parameter;
      }
    }
    if (parameter_ == nullptr) return;  // of another rank
    memory_ = &trainer.worker().store().memory();
    OnHost values(values_, *memory_);
    before_.assign(values->data<float>(), values->data<float>() + values->numel());
    std::fill_n(values->data<float>(), values->numel(), value);
    values.put_back();
    ++parameter_->version;
  }
  ~Poison() {
    if (parameter_ == nullptr) return;
    memory_->write(values_.raw(), reinterpret_cast<const std::byte*>(before_.data()), values_.bytes());
    ++parameter_->version;
  }
  Poison(const Poison&) = delete;
  Poison& operator=(const Poison&) = delete;

 private:
  Parameter* parameter_ = nullptr;
  Memory* memory_ = nullptr;
  Tensor values_;
  std::vector<float> before_;
};

constexpr const char* kLastExpert = "model.layers.2.mlp.experts.9.";  // of the last rank

std::string expert(const char* part) { return fmt::format("{}{}_proj.weight", kLastExpert, part); }

TEST(NonFinite, a_step_that_overflows_changes_no_bit_and_the_run_goes_on) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        Trainer trainer(world.duplicate("run"), run_in(folder));
        trainer.step();
        {
          const Poison poison(trainer, expert("up"), 3e38F);
          const std::vector<std::byte> before = state_of(trainer);
          const StepRecord skipped = trainer.step();
          EXPECT_FALSE(std::isfinite(skipped.global.loss) && std::isfinite(skipped.grad_norm));
          EXPECT_EQ(skipped.skipped_steps, 1);
          EXPECT_EQ(before, state_of(trainer));
        }
        const StepRecord next = trainer.step();
        EXPECT_EQ(next.step, 3);
        EXPECT_EQ(next.skipped_steps, 1);
        EXPECT_TRUE(std::isfinite(next.global.loss));
        EXPECT_TRUE(std::isfinite(next.grad_norm));
      },
      {1, 2, 3});
}

// A device tells of each token whether its logits are finite; the host looks at them only then.
TEST(NonFinite, a_late_device_skips_what_the_cpu_skips) {
  const auto late = [] { return test::make_gpu_twin(test::TwinOrder::ascending, test::TwinMemory::own); };
  test::on_ranks(
      [&](Communicator& world) {
        const RunFolder folder(world);
        std::vector<double> losses;
        for (const KernelMaker& kernels : {KernelMaker(), KernelMaker(late)}) {
          Trainer trainer({test::make_twin_transport(world.transport()), "run"}, run_in(folder), nullptr, kernels);
          {
            const Poison poison(trainer, "model.layers.1.mlp.gate.weight", 3e38F);
            EXPECT_EQ(trainer.step().skipped_steps, 1);
          }
          for (int i = 0; i < 2; ++i) losses.push_back(trainer.step().global.loss);
        }
        EXPECT_NEAR(losses[2], losses[0], 1e-4 * losses[0]);
        EXPECT_NEAR(losses[3], losses[1], 1e-4 * losses[1]);
      },
      {1, 2});
}

// One skipped step; then three that train, as after a resume if that is asked for. The losses of all ranks are the same.
std::vector<double> losses_around_a_skipped_step(const Communicator& world, RunConfig config, bool resume) {
  std::vector<double> losses;
  std::optional<Trainer> trainer(std::in_place, world.duplicate("first"), config);
  {
    const Poison poison(*trainer, expert("up"), 3e38F);
    trainer->step();
  }
  losses.push_back(trainer->step().global.loss);
  if (resume) {
    trainer->save();
    config.checkpoint.resume = "auto";
    trainer.reset();
    trainer.emplace(world.duplicate("second"), config);
  }
  for (int i = 0; i < 3; ++i) {
    const StepRecord record = trainer->step();
    EXPECT_EQ(record.skipped_steps, 1);
    losses.push_back(record.global.loss);
  }
  return losses;
}

// The first moments are made in step 2: only who knows that step 1 was skipped corrects their bias rightly.
TEST(NonFinite, a_skipped_step_is_not_forgotten_by_a_resume) {
  test::on_ranks(
      [](Communicator& world) {
        const RunFolder folder(world);
        const RunConfig config = run_in(folder);
        const auto whole = losses_around_a_skipped_step(world, config, false);
        EXPECT_EQ(whole, losses_around_a_skipped_step(world, config, true));
        EXPECT_LT(whole.back(), whole.front());
      },
      {1, 2});
}

TEST(NonFinite, is_found_where_it_was_made) {
  if (test::runs_under_mpi()) GTEST_SKIP() << "thread ranks only";
  const test::TemporaryDirectory folder;
  test::write_file(folder / "text", test::some_text());
  RunConfig config = test::small_run(folder.path());
  config.exchange.strategy = "flat";
  config.train.max_skipped_steps = 3;
  config.model.topk_method = TopkMethod::greedy;
  const float infinity = std::numeric_limits<float>::infinity();
  using Poisons = std::vector<std::pair<std::string, float>>;
  const auto said = [&](const Poisons& poisons, int64_t max_skipped, int64_t steps_done) {
    config.train.max_skipped_steps = max_skipped;
    std::string text;
    run_local_ranks(2, [&](std::unique_ptr<Transport> transport) {
      const bool first = transport->rank() == 0;
      Trainer trainer(Communicator(std::move(transport), "world"), config);
      std::deque<Poison> poisoned;
      for (const auto& [name, value] : poisons) poisoned.emplace_back(trainer, name, value);
      const std::string error = test::error_of([&] {
        for (int i = 0; i < 5; ++i) trainer.step();
      });
      if (first) text = error;
      EXPECT_EQ(trainer.steps_done(), steps_done);
    });
    return text;
  };
  // In the products of an expert of the last rank.
  EXPECT_THAT(said({{expert("up"), 3e38F}}, 2, 1),
              AllOf(HasSubstr("2 steps in a row were skipped; step 2: "),
                    HasSubstr("rank 1: what experts of this rank make in layer 2 is not finite"),
                    HasSubstr("lower train.learning_rate")));
  // In a weight: nothing that comes after can be better.
  EXPECT_THAT(said({{expert("down"), infinity}}, 3, 0), HasSubstr("rank 1: " + expert("down") + " is not finite"));
  // In a gradient: gate = 0 makes its output zero, and down, up large the gradient of gate infinite.
  EXPECT_THAT(said({{expert("gate"), 0.0F}, {expert("up"), 1e28F}, {expert("down"), 1e28F}}, 1, 0),
              HasSubstr("rank 1: the gradient of " + expert("gate") + " is not finite"));
  // The same where it is dropped before the step ends; each rank holds the expert.
  RunConfig sharded = config;
  sharded.parallel.expert = 1;
  sharded.parallel.shard_gradients = true;
  std::swap(config, sharded);
  EXPECT_THAT(said({{expert("gate"), 0.0F}, {expert("up"), 1e28F}, {expert("down"), 1e28F}}, 1, 0),
              HasSubstr("rank 0: the gradient of " + expert("gate") + " is not finite"));
  std::swap(config, sharded);
  // In attention, on all ranks: the lowest is named.
  EXPECT_THAT(said({{"model.layers.1.self_attn.v_proj.weight", 3e38F}}, 1, 0),
              HasSubstr("rank 0: what attention makes in layer 1 is not finite"));
}

}  // namespace
}  // namespace cadre::non_finite_test
