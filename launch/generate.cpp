// SPDX-License-Identifier: Apache-2.0
// cadre generate: the model goes on with texts.
#include "runtime/infer/generate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <optional>

#include "comm/base/console.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/model/router_options.hpp"
#include "runtime/checkpoint/generation_config.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/sharded.hpp"
#include "runtime/config/task_config.hpp"
#include "runtime/data/task_labels.hpp"
#include "runtime/infer/text_stream.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/open.hpp"

namespace cadre {
namespace {

struct Options {
  std::string checkpoint;
  std::vector<std::string> prompts;
  std::string prompts_file;
  int64_t max_new = GenerateOptions().max_new;
  double temperature = Sampling().temperature;
  int64_t top_k = Sampling().top_k;
  double top_p = Sampling().top_p;
  int64_t seed = 0;
  int64_t samples = 1;
  int64_t batch = 0;
  std::string speculate = "auto";
  int64_t cache_mib = 0;
  std::string complexity;
  std::string dead_experts;
  std::string placement;
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
RequestFacts facts_of(const std::string& prompt, const Options& options, const RunConfig& config) {
  RequestFacts facts;
  if (config.task.recognise) {
    const std::vector<int32_t> ids = encode_bytes(prompt);
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
  const std::array mine = {cache.rows_looked_for(), cache.rows_found(), static_cast<int64_t>(cache.bytes())};
  const auto sums = worker.await(worker.expert_group().all_reduce(mine, ReduceOp::sum));
  if (worker.world().rank() != 0) return;
  const double rate = sums[0] == 0 ? 0.0 : 100.0 * static_cast<double>(sums[1]) / static_cast<double>(sums[0]);
  fmt::print(stderr, "cache    {:.1f} % of {} rows of experts were known, {:.1f} MiB\n", rate, sums[0],
             static_cast<double>(sums[2]) / (1 << 20));
}

// All of --prompt, then the lines of --prompts.
std::vector<std::string> prompts_of(const Options& options) {
  std::vector<std::string> prompts = options.prompts;
  if (!options.prompts_file.empty()) {
    std::ifstream file(options.prompts_file);
    CADRE_CHECK(file.good(), fmt::format("--prompts {}: cannot be read", options.prompts_file),
                "a text file with a prompt in each line");
    for (std::string line; std::getline(file, line);) prompts.push_back(line);
    CADRE_CHECK(!file.bad(), fmt::format("--prompts {}: reading failed", options.prompts_file));
  }
  CADRE_CHECK(!prompts.empty(), "no prompt is given, allowed: at least one",
              "--prompt TEXT, several times for several texts, or --prompts FILE");
  return prompts;
}

// A prompt with its samples, then the next.
std::vector<TextRequest> requests_of(const std::vector<std::string>& prompts, const Tokenizer& tokenizer,
                                     const Options& options, const RunConfig& config) {
  std::vector<TextRequest> requests;
  for (const std::string& prompt : prompts) {
    std::vector<int32_t> tokens = tokenizer.encode(prompt);
    if (!tokens.empty())
      tokens.insert(tokens.begin(), tokenizer.prompt_prefix().begin(), tokenizer.prompt_prefix().end());
    for (int64_t sample = 0; sample < options.samples; ++sample) {
      requests.push_back({tokens, sampling_of(options, sample), facts_of(prompt, options, config)});
    }
  }
  return requests;
}

// MTP modules that speculation is done with. What a directory of another program says of them in its
// config.json it need not have.
int64_t num_drafts(const std::filesystem::path& checkpoint, const ModelConfig& model, const std::string& speculate) {
  const int64_t modules = model.num_nextn_predict_layers;
  if (speculate == "off" || (speculate == "auto" && modules == 0)) return 0;
  CADRE_CHECK(modules > 0, fmt::format("--speculate on, but {} has num_nextn_predict_layers = 0", checkpoint.string()),
              "train with model.num_nextn_predict_layers=1, or leave --speculate out");
  const std::string first = fmt::format("model.layers.{}.eh_proj.weight", model.num_hidden_layers);
  if (speculate == "auto" && !ShardedReader(checkpoint).weight_map().contains(first)) return 0;
  return modules;
}

// On stderr, as all that is not the text. Collective statistics, the same on all ranks.
void print_acceptance(const GenerateStatistics& statistics) {
  constexpr const char* kOrdinals[] = {"second", "third", "fourth"};
  for (size_t draft = 0; draft < statistics.drafted.size(); ++draft) {
    const int64_t drafted = statistics.drafted[draft];
    const double share =
        drafted == 0 ? 0.0 : 100.0 * static_cast<double>(statistics.accepted[draft]) / static_cast<double>(drafted);
    const std::string ordinal = draft < std::size(kOrdinals) ? kOrdinals[draft] : fmt::format("{}th", draft + 2);
    fmt::print(stderr, "{}-token acceptance {:.1f} % of {}\n", ordinal, share, drafted);
  }
}

// At once, so that the text appears as it is made.
void print_text(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  require_stdout();
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

// Generates and prints on rank 0.
void print_texts(Worker& worker, const std::vector<std::string>& prompts, const Tokenizer& tokenizer,
                 const std::vector<TextRequest>& requests, const GenerateOptions& options) {
  const bool speaks = worker.world().rank() == 0;
  const size_t samples = requests.size() / prompts.size();
  TextStream stream(requests.size(), print_text);
  for (size_t text = 0; speaks && text < requests.size(); ++text) stream.add(text, prompts[text / samples]);
  const GenerateStatistics statistics =
      generate(worker, requests, options, [&](size_t text, std::optional<int32_t> token) {
        if (token) stream.add(text, tokenizer.piece(*token));
        if (!token) stream.end(text);
      });
  if (!speaks) return;
  print_acceptance(statistics);
  const ModelConfig& model = worker.model().config();
  if (model.routing.dead_experts.empty()) return;
  fmt::print(stderr, "{}", dead_experts_note(model, statistics.routed.rerouted, statistics.routed.tokens));
}

void run_generate(const Options& options, const Job& job) {
  const std::filesystem::path checkpoint = find_checkpoint(options.checkpoint);
  RunConfig config = run_config_of(checkpoint);
  const std::string notes = checkpoint_notes(checkpoint);
  if (job.rank() == 0) fmt::print(stderr, "{}", notes);
  leave_out(options.dead_experts, config.model);
  config.parallel.placement = options.placement;
  const auto tokenizer = tokenizer_of(checkpoint, config);
  const std::vector<std::string> prompts = prompts_of(options);
  const std::vector<TextRequest> requests = requests_of(prompts, *tokenizer, options, config);
  const std::vector<int32_t> end_tokens = end_tokens_of(checkpoint, config.model.vocab_size);
  WorkerOptions worker_options = inference_options(config);
  worker_options.model.num_nextn_predict_layers = num_drafts(checkpoint, config.model, options.speculate);
  set_kernel_threads(static_cast<int>(config.compute.threads));
  job.on_ranks(options.ranks, [&](Communicator world) {
    Worker worker(std::move(world), worker_options);
    load_checkpoint(checkpoint, worker.store(), nullptr);
    if (worker.world().rank() == 0) {
      const std::string note = tokenizer->note_on(fmt::format("{}", fmt::join(prompts, "\n")));
      if (!note.empty()) fmt::print(stderr, "note: {}\n", note);
    }
    if (worker.world().rank() == 0 && options.explain) {
      for (const std::string& prompt : prompts) explain(prompt, config, facts_of(prompt, options, config));
    }
    std::optional<ExpertCache> cache;
    if (options.cache_mib > 0) cache.emplace(static_cast<size_t>(options.cache_mib) << 20);
    GenerateOptions generate_options = {
        .max_new = options.max_new, .end_tokens = end_tokens, .cache = cache ? &*cache : nullptr};
    if (cache) generate_options.batch = 1;  // what it knows are the rows of a whole pass
    if (options.batch > 0) generate_options.batch = options.batch;
    print_texts(worker, prompts, *tokenizer, requests, generate_options);
    if (cache) print_cache(worker, *cache);
  });
}

}  // namespace

Command generate_command() {
  const auto options = std::make_shared<Options>();
  return {.name = "generate",
          .summary = "lets a checkpoint go on with texts",
          .arguments = {checkpoint_argument(options->checkpoint)},
          .options = {{"prompts", &options->prompts_file, any(), "file with such a text in each line"},
                      {"max-new", &options->max_new, at_least(1), "most tokens to make of each text"},
                      {"temperature", &options->temperature, at_least(0), "0 takes the likeliest token"},
                      {"top-k", &options->top_k, at_least(0), "choose among that many likeliest; 0 for all"},
                      {"top-p", &options->top_p, between(0, 1), "then among the fewest with this probability together"},
                      {"seed", &options->seed, at_least(0), "another seed, another text"},
                      {"samples", &options->samples, at_least(1),
                       "texts to make of each prompt, with seeds from --seed on"},
                      {"batch", &options->batch, at_least(0),
                       "most texts that are made at once, over all ranks; 0 for 16, or 1 with --cache-mib"},
                      {"speculate", &options->speculate, one_of({"auto", "on", "off"}),
                       "draft tokens with the MTP modules and verify them, which changes no text; auto where "
                       "the checkpoint has such modules"},
                      {"cache-mib", &options->cache_mib, between(0, 1 << 20),
                       "memory of a rank for outputs of experts that may be needed again; 0 for none"},
                      {"complexity", &options->complexity, one_of({"", "simple", "medium", "complex", "critical"}),
                       "how hard the request is: its tokens visit as many experts as task.k_... of the run says"},
                      dead_experts_option(options->dead_experts),
                      placement_option(options->placement),
                      {"explain", &options->explain, any(), "say which task the prompt is recognised as, and by what"},
                      ranks_option(options->ranks)},
          .lists = {{"prompt", &options->prompts, "a text to go on with"}},
          .run = [options](const Job& job) { run_generate(*options, job); }};
}

}  // namespace cadre
