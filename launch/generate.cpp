// SPDX-License-Identifier: Apache-2.0
// cadre generate: the model goes on with a text.
#include "runtime/infer/generate.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <optional>

#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/task_config.hpp"
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
  int64_t samples = 1;
  int64_t cache_mib = 0;
  bool explain = false;
  int64_t ranks = 0;
};

GenerateOptions generate_options(const Options& options, int64_t sample, ExpertCache* cache) {
  return {.max_new = options.max_new,
          .sampling = {.temperature = options.temperature,
                       .top_k = options.top_k,
                       .seed = static_cast<uint64_t>(options.seed + sample)},
          .cache = cache};
}

// What the prompt asks for, and what in it says so. On stderr, as all that is not the text.
void explain(const std::string& prompt, const RunConfig& config) {
  const TaskOptions options = task_options(config.task);
  const RecognisedTask task = recognise_task(prompt, options);
  const int num_experts = static_cast<int>(config.model.n_routed_experts);
  fmt::print(stderr, "task     {}\n", name_of(task.type));
  for (const TaskMatch& match : task.matches) {
    fmt::print(stderr, "keyword  {} of {}, at byte {}\n", match.what, name_of(match.type), match.at);
  }
  if (task.matches.empty()) fmt::print(stderr, "keyword  none, so it is {}\n", name_of(task.type));
  fmt::print(stderr, "experts  {} of {} are meant for it\n",
             fmt::join(experts_of_task(task.type, options, num_experts), " "), num_experts);
}

// Collective over the expert-parallel group.
void print_cache(const Worker& worker, const ExpertCache& cache) {
  std::vector<int64_t> sums = {cache.rows_looked_for(), cache.rows_found(), static_cast<int64_t>(cache.bytes())};
  Request summed = worker.expert_group().all_reduce(std::span(sums), ReduceOp::sum);
  worker.await(summed);
  if (worker.world().rank() != 0) return;
  const double rate = sums[0] == 0 ? 0.0 : 100.0 * static_cast<double>(sums[1]) / static_cast<double>(sums[0]);
  fmt::print(stderr, "cache    {:.1f} % of {} rows of experts were known, {:.1f} MiB\n", rate, sums[0],
             static_cast<double>(sums[2]) / (1 << 20));
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
    if (speaks && options.explain) explain(options.prompt, config);
    std::optional<ExpertCache> cache;
    if (options.cache_mib > 0) cache.emplace(static_cast<size_t>(options.cache_mib) << 20);
    for (int64_t sample = 0; sample < options.samples; ++sample) {
      if (speaks) print_text(options.prompt);
      generate(worker, prompt, generate_options(options, sample, cache ? &*cache : nullptr),
               [](int32_t token) { print_text(decode_bytes(std::span(&token, 1))); });
      if (speaks) print_text("\n");
    }
    if (cache) print_cache(worker, *cache);
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
                      {"samples", &options->samples, at_least(1), "texts to make, with seeds from --seed on"},
                      {"cache-mib", &options->cache_mib, between(0, 1 << 20),
                       "memory of a rank for outputs of experts that may be needed again; 0 for none"},
                      {"explain", &options->explain, any(), "say which task the prompt is recognised as, and by what"},
                      ranks_option(options->ranks)},
          .run = [options](const Job& job) { run_generate(*options, job); }};
}

}  // namespace cadre
