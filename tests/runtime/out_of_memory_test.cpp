// SPDX-License-Identifier: Apache-2.0
// Memory that a step wants and cannot have: the error says which layer asked, what it was at, and how many tokens the
// micro-batch has.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "comm/base/buffer.hpp"
#include "comm/transport/local.hpp"
#include "runtime/parallel/executor.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/small_runs.hpp"

namespace cadre::out_of_memory_test {
namespace {

constexpr int64_t kSequences = 3;
constexpr int64_t kLength = 20;

class FullMemory final : public Memory {
 public:
  std::byte* allocate(size_t bytes) override {
    throw OutOfMemory(fmt::format("device 0 has 7 MiB free of 9 MiB, and {} bytes more are wanted", bytes), "use less");
  }
  void release(std::byte*) noexcept override {}
};

RunConfig config_of_test() {
  RunConfig config = test::small_run("unused");
  config.model.vocab_size = 64;
  config.train.micro_batches = 2;
  return config;
}

// What the step says for which activations have `room` bytes and no more; empty where that is enough. `used` is what it
// took then.
std::string error_of_step(Communicator world, size_t room, size_t* used = nullptr) {
  const RunConfig config = config_of_test();
  const Program program = program_of(config);
  WorkerOptions options;
  options.model = config.model;
  options.exchange.strategy = "flat";
  options.max_tokens = kSequences * kLength;
  Worker worker(std::move(world), options);
  worker.store().initialise(1);
  worker.store().forget_grads();
  FullMemory full;
  Buffer memory(room);
  Arena arena(Arena::Mode::real, /*poison=*/false, full);
  arena.lend(memory.span());
  worker.arena() = std::move(arena);

  Executor executor(worker, program);
  StepWork work;
  work.step = 5;
  work.read = [](int) {
    std::vector<int32_t> tokens(kSequences * kLength, 3);
    return MicroBatch(tokens, tokens, kSequences, kLength);
  };
  work.num_tokens = [](int) { return kSequences * kLength; };
  LocalStep local = empty_local_step(config.model);
  try {
    executor.run(work, local);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::environment);
    EXPECT_EQ(error.hint(), "use less");
    return error.text();
  }
  if (used != nullptr) *used = worker.arena().peak_bytes();
  return {};
}

TEST(OutOfMemory, SaysLayerAndTokens) {
  test::on_ranks(
      [](Communicator& world) {
        size_t used = 0;
        ASSERT_EQ(error_of_step(world.duplicate("enough"), size_t{16} << 20, &used), "");
        ASSERT_GT(used, size_t{1} << 16);
        std::set<std::string> layers;
        constexpr size_t kParts = 24;
        for (size_t part = 0; part < kParts; ++part) {
          const std::string text = error_of_step(world.duplicate("too little"), used * part / kParts);
          SCOPED_TRACE(text);
          EXPECT_TRUE(text.starts_with("step 5, micro-batch 0, "));
          EXPECT_NE(text.find(", 60 tokens: device 0 has 7 MiB free of 9 MiB, and "), std::string::npos);
          if (const size_t at = text.find("layer "); at != std::string::npos) layers.insert(text.substr(at, 7));
        }
        EXPECT_EQ(layers, (std::set<std::string>{"layer 0", "layer 1", "layer 2"}));
      },
      {1});
}

}  // namespace
}  // namespace cadre::out_of_memory_test
