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
#include "layers/model/router_options.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/config/task_config.hpp"
#include "runtime/data/task_labels.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/open.hpp"
#include "runtime/tokenizer/utf8_stream.hpp"

namespace cadre {
namespace {

struct Options {
  std::string checkpoint;
  std::string prompt;
  int64_t max_new = GenerateOptions().max_new;
  double temperature = Sampling().temperature;
  int64_t top_k = Sampling().top_k;
  double top_p = Sampling().top_p;
  int64_t seed = 0;
  int64_t samples = 1;
  int64_t cache_mib = 0;
  std::string complexity;
  bool explain = false;
  int64_t ranks = 0;
};

Sampling sampling_of(const Options& options, int64_t sample) {
  return {.temperature = options.temperature,
          .top_k = options.top_k,
          .top_p = options.top_p,
          .seed = static_cast<uint64_t>(options.seed + sample)};
}

// What the request asks of the router: experts of its task, where the run that trained the model recognised tasks, and as many
// experts as its complexity is worth.
RequestFacts facts_of(const Options& options, const RunConfig& config) {
  RequestFacts facts;
  if (config.task.recognise) {
    const std::vector<int32_t> ids = encode_bytes(options.prompt);
    if (!ids.empty())
      facts.task = task_labels(ids, static_cast<int64_t>(ids.size()), task_options(config.task)).front();
  }
  if (!options.complexity.empty()) {
    const Complexity complexity = complexity_named(options.complexity);
    facts.num_experts = experts_for(complexity, complexity_table(config.task), config.model.num_experts_per_tok);
  }
  return facts;
}

// What the prompt asks for, and what in it says so. On stderr, as all that is not the text.
void explain(const std::string& prompt, const RunConfig& config, const RequestFacts& facts) {
  const RecognisedTask task = recognise_task(prompt, task_options(config.task));
  fmt::print(stderr, "task     {}\n", name_of(task.type));
  for (const TaskMatch& match : task.matches) {
    fmt::print(stderr, "keyword  {} of {}, at byte {}\n", match.what, name_of(match.type), match.at);
  }
  if (task.matches.empty()) fmt::print(stderr, "keyword  none, so it is {}\n", name_of(task.type));
  std::vector<size_t> meant;
  const std::vector<int32_t> tasks = expert_tasks(config.model);
  for (size_t expert = 0; expert < tasks.size(); ++expert) {
    if (tasks[expert] == static_cast<int32_t>(task.type)) meant.push_back(expert);
  }
  fmt::print(
      stderr, "experts  {} of {} are meant for it{}\n",
      meant.empty() ? "none" : fmt::format("{}", fmt::join(meant, " ")), config.model.n_routed_experts,
      facts.task == kNoTask ? ", and the router is not told" : fmt::format(", by {}", config.model.routing.task_bias));
  if (facts.num_experts > 0) fmt::print(stderr, "top-k    at most {} experts a token\n", facts.num_experts);
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

// Of the checkpoint, for a vocabulary that it fits.
std::unique_ptr<Tokenizer> tokenizer_of(const std::filesystem::path& checkpoint, const RunConfig& config) {
  auto tokenizer = open_tokenizer(config.data.tokenizer);
  const bool is_bytes = config.data.tokenizer == kByteTokenizer;
  const int64_t vocabulary = config.model.vocab_size;
  CADRE_CHECK(is_bytes ? vocabulary == kByteVocabSize : vocabulary >= tokenizer->vocab_size(),
              fmt::format("{}: vocab_size = {}, allowed: {} {} with {}", checkpoint.string(), vocabulary,
                          is_bytes ? "exactly" : "at least", tokenizer->vocab_size(),
                          is_bytes ? "tokens of bytes" : "the tokenizer in it"),
              is_bytes ? "tokens of text are bytes where the checkpoint has no tokenizer.json and no tokenizer.model"
                       : "the tokenizer is of another model");
  return tokenizer;
}

void run_generate(const Options& options, const Job& job) {
  const std::filesystem::path checkpoint = find_checkpoint(options.checkpoint);
  const RunConfig config = run_config_of(checkpoint);
  const auto tokenizer = tokenizer_of(checkpoint, config);
  std::vector<int32_t> prompt = tokenizer->encode(options.prompt);
  if (!prompt.empty())
    prompt.insert(prompt.begin(), tokenizer->prompt_prefix().begin(), tokenizer->prompt_prefix().end());
  const RequestFacts facts = facts_of(options, config);
  const WorkerOptions worker_options = inference_options(config);
  set_kernel_threads(static_cast<int>(config.compute.threads));
  job.on_ranks(options.ranks, [&](Communicator world) {
    Worker worker(std::move(world), worker_options);
    load_checkpoint(checkpoint, worker.store(), nullptr);
    const bool speaks = worker.world().rank() == 0;
    if (speaks && options.explain) explain(options.prompt, config, facts);
    std::optional<ExpertCache> cache;
    if (options.cache_mib > 0) cache.emplace(static_cast<size_t>(options.cache_mib) << 20);
    for (int64_t sample = 0; sample < options.samples; ++sample) {
      if (speaks) print_text(options.prompt);
      Utf8Stream text;
      generate(worker, prompt,
               {.max_new = options.max_new,
                .sampling = sampling_of(options, sample),
                .cache = cache ? &*cache : nullptr,
                .facts = facts},
               [&](int32_t token) { print_text(text.put(tokenizer->piece(token))); });
      if (speaks) print_text(text.finish().append("\n"));
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
                      {"top-p", &options->top_p, between(0, 1), "then among the fewest with this probability together"},
                      {"seed", &options->seed, at_least(0), "another seed, another text"},
                      {"samples", &options->samples, at_least(1), "texts to make, with seeds from --seed on"},
                      {"cache-mib", &options->cache_mib, between(0, 1 << 20),
                       "memory of a rank for outputs of experts that may be needed again; 0 for none"},
                      {"complexity", &options->complexity, one_of({"", "simple", "medium", "complex", "critical"}),
                       "how hard the request is: its tokens visit as many experts as task.k_... of the run says"},
                      {"explain", &options->explain, any(), "say which task the prompt is recognised as, and by what"},
                      ranks_option(options->ranks)},
          .run = [options](const Job& job) { run_generate(*options, job); }};
}

}  // namespace cadre
