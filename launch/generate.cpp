// SPDX-License-Identifier: Apache-2.0
// cadre generate: the model goes on with a text.
#include "runtime/infer/generate.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <memory>

#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/data/tokenizer.hpp"

namespace cadre {
namespace {

struct Options {
  std::string checkpoint;
  std::string prompt;
  int64_t max_new = GenerateOptions().max_new;
  double temperature = Sampling().temperature;
  int64_t top_k = Sampling().top_k;
  int64_t seed = 0;
  int64_t ranks = 0;
};

GenerateOptions generate_options(const Options& options) {
  return {.max_new = options.max_new,
          .sampling = {
              .temperature = options.temperature, .top_k = options.top_k, .seed = static_cast<uint64_t>(options.seed)}};
}

// At once, so that the text appears as it is made.
void print_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void run_generate(const Options& options, const Job& job) {
  const std::filesystem::path checkpoint = find_checkpoint(options.checkpoint);
  const RunConfig config = run_config_of(checkpoint);
  CADRE_CHECK(
      config.model.vocab_size == kByteVocabSize,
      fmt::format("{}: vocab_size = {}, allowed: {}", checkpoint.string(), config.model.vocab_size, kByteVocabSize),
      "a prompt is text, and the tokens of text are bytes");
  const std::vector<int32_t> prompt = encode_bytes(options.prompt);
  const WorkerOptions worker_options = inference_options(config);
  set_kernel_threads(static_cast<int>(config.compute.threads));
  job.on_ranks(options.ranks, [&](Communicator world) {
    Worker worker(std::move(world), worker_options);
    load_checkpoint(checkpoint, worker.store(), nullptr);
    const bool speaks = worker.world().rank() == 0;
    if (speaks) print_text(options.prompt);
    generate(worker, prompt, generate_options(options),
             [](int32_t token) { print_text(decode_bytes(std::span(&token, 1))); });
    if (speaks) print_text("\n");
  });
}

}  // namespace

Command generate_command() {
  const auto options = std::make_shared<Options>();
  return {.name = "generate",
          .summary = "lets a checkpoint go on with a text",
          .arguments = {checkpoint_argument(options->checkpoint)},
          .options = {{"prompt", &options->prompt, any(), "the text to go on with"},
                      {"max-new", &options->max_new, at_least(1), "most tokens to make"},
                      {"temperature", &options->temperature, at_least(0), "0 takes the likeliest token"},
                      {"top-k", &options->top_k, at_least(0), "choose among that many likeliest; 0 for all"},
                      {"seed", &options->seed, at_least(0), "another seed, another text"},
                      ranks_option(options->ranks)},
          .run = [options](const Job& job) { run_generate(*options, job); }};
}

}  // namespace cadre
