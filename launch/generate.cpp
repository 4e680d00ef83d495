// SPDX-License-Identifier: Apache-2.0
// cadre generate: the model goes on with texts.
#include "runtime/infer/generate.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>

#include "comm/base/console.hpp"
#include "launch/chat.hpp"
#include "launch/checkpoint_argument.hpp"
#include "launch/command.hpp"
#include "launch/requests.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/checkpoint/companion_files.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/checkpoint/safetensors.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/data/dataset.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {
namespace {

struct GenerateArguments {
  std::string checkpoint;
  std::string adapter;
  RequestOptions requests;
  ChatOptions chat;
  std::vector<std::string> stop;
  int64_t max_new = GenerateOptions().max_new;
  int64_t seed = 0;
  int64_t batch = 0;
  std::string speculate = "auto";
  int64_t cache_mib = 0;
  int64_t rebalance = 0;
  std::string dead_experts;
  std::string placement;
  ComputeArguments compute;
  std::string replay;
  std::string logprobs;
  std::string row_bits;
  bool explain = false;
  int64_t ranks = 0;
  std::set<std::string> given;  // options on the command line
};

// Collective over the expert-parallel group.
void print_cache(const Worker& worker, const ExpertCache& cache) {
  const std::array mine = {cache.rows_looked_for(), cache.rows_found(), static_cast<int64_t>(cache.bytes())};
  const auto sums = worker.await(worker.expert_group().all_reduce(mine, ReduceOp::sum));
  if (worker.world().rank() != 0) return;
  const double rate = sums[0] == 0 ? 0.0 : 100.0 * static_cast<double>(sums[1]) / static_cast<double>(sums[0]);
  fmt::print(stderr, "cache    {:.1f} % of {} expert rows found, {:.1f} MiB\n", rate, sums[0],
             static_cast<double>(sums[2]) / (1 << 20));
}

// Number of MTP modules to speculate with. Files of another program may lack the modules that config.json names.
int64_t num_drafts(const std::filesystem::path& checkpoint, const ModelConfig& model, const std::string& speculate) {
  const int64_t modules = model.num_nextn_predict_layers;
  if (speculate == "off" || (speculate == "auto" && modules == 0)) return 0;
  CADRE_CHECK(modules > 0, fmt::format("--speculate on, but {} has num_nextn_predict_layers = 0", checkpoint.string()),
              "train with model.num_nextn_predict_layers=1, or omit --speculate");
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

// Of the checkpoint. A vocabulary may be larger, padded to some multiple; what no tokenizer made is another matter.
std::shared_ptr<const Tokenizer> tokenizer_of(const std::filesystem::path& checkpoint, const RunConfig& config) {
  std::shared_ptr<const Tokenizer> tokenizer = open_tokenizer(config.data.tokenizer);
  const int64_t vocabulary = config.model.vocab_size;
  const bool is_bytes = config.data.tokenizer == kByteTokenizer;
  const bool has_other_tokens = is_bytes && vocabulary != kByteVocabSize &&
                                (!std::filesystem::exists(checkpoint / "run.toml") || holds_tokens(config.data.path));
  CADRE_CHECK(vocabulary >= tokenizer->vocab_size() && !has_other_tokens,
              fmt::format("{}: vocab_size = {}, allowed: {} {} with {}", checkpoint.string(), vocabulary,
                          has_other_tokens ? "exactly" : "at least", tokenizer->vocab_size(),
                          is_bytes ? "tokens of bytes" : "the tokenizer in it"),
              is_bytes ? "without tokenizer.json or tokenizer.model, tokens are bytes"
                       : "the tokenizer belongs to another model");
  return tokenizer;
}

// A line for each text: prompt and new tokens as ids, and the log-probabilities of the new ones.
void write_logprobs(const std::string& path, const std::vector<TextRequest>& texts,
                    const std::vector<std::vector<int32_t>>& made, const GenerateStatistics& statistics) {
  std::string lines;
  for (size_t text = 0; text < texts.size(); ++text) {
    const nlohmann::json line = {
        {"prompt", texts[text].prompt}, {"tokens", made[text]}, {"logprobs", statistics.log_probabilities[text]}};
    lines += line.dump() + "\n";
  }
  write_text_file(path, lines);
}

// Generates and prints on rank 0.
void print_texts(Worker& worker, const Requests& requests, const Tokenizer& tokenizer, const GenerateOptions& options,
                 const std::string& logprobs) {
  const bool speaks = worker.world().rank() == 0;
  const std::vector<TextRequest>& texts = requests.texts;
  const size_t samples = texts.size() / requests.prompts.size();
  TextStream stream(texts.size(), print_text);
  std::vector<StopStrings> stops(texts.size(), StopStrings(options.stop_strings));
  for (size_t text = 0; speaks && text < texts.size(); ++text) stream.add(text, requests.prompts[text / samples]);
  std::vector<std::vector<int32_t>> made(texts.size());
  const GenerateStatistics statistics =
      generate(worker, texts, options, [&](size_t text, std::optional<int32_t> token) {
        if (token) made[text].push_back(*token);
        stream.add(text, token ? stops[text].put(tokenizer.piece(*token)) : stops[text].finish());
        if (!token) stream.end(text);
      });
  if (!speaks) return;
  if (!logprobs.empty()) write_logprobs(logprobs, texts, made, statistics);
  print_acceptance(statistics);
  if (options.replay != nullptr) fmt::print(stderr, "{}\n", describe(statistics.replayed));
  const ModelConfig& model = worker.model().config();
  if (model.router.dead_experts.empty()) return;
  fmt::print(stderr, "{}", dead_experts_note(model, statistics.routed.rerouted, statistics.routed.tokens));
}

// Sets what the checkpoint's generation_config.json asks for and the command line does not. Returns a note on it, or "".
std::string apply_sampling_defaults(const std::filesystem::path& checkpoint, const std::set<std::string>& given,
                                    Sampling& sampling) {
  const SamplingDefaults defaults = sampling_defaults_of(checkpoint);
  std::string applied;
  const auto apply = [&](const char* option, const auto& value, auto& member) {
    if (!value || given.contains(option)) return;
    member = *value;
    applied += fmt::format(" --{} {}", option, *value);
  };
  apply("temperature", defaults.temperature, sampling.temperature);
  apply("top-k", defaults.top_k, sampling.top_k);
  apply("top-p", defaults.top_p, sampling.top_p);
  apply("repetition-penalty", defaults.repetition_penalty, sampling.repetition_penalty);
  return applied.empty() ? "" : fmt::format("note: generation_config.json of the checkpoint sets{}\n", applied);
}

// What --chat does not go with.
void check_chat(const GenerateArguments& options) {
  for (const char* chat_only : {"system", "conversations", "chat-format"}) {
    CADRE_CHECK(options.chat.is_on || !options.given.contains(chat_only), fmt::format("--{} without --chat", chat_only),
                "add --chat, which speaks in turns");
  }
  for (const char* other : {"prompts", "samples", "complexity", "explain", "replay", "logprobs"}) {
    CADRE_CHECK(!options.chat.is_on || !options.given.contains(other), fmt::format("--{} with --chat", other),
                "give questions with --prompt, --conversations FILE or on standard input");
  }
  CADRE_CHECK(options.requests.prompts.empty() || options.chat.conversations.empty(),
              "--prompt and --conversations are given", "give one of them");
}

// The questions of a chat need no requests: those have what the text asks of the router.
Requests requests_of(const GenerateArguments& options, const RequestOptions& wanted, const RunConfig& config,
                     const Tokenizer& tokenizer) {
  if (!options.chat.is_on) return make_requests(wanted, config, tokenizer);
  Requests none;
  none.top_k = config.model.num_experts_per_tok;
  return none;
}

// The format of --chat-format, else that of a run on conversations, else the one that the tokenizer asks for.
std::optional<Chat> chat_of(const GenerateArguments& options, const RunConfig& config) {
  if (!options.chat.is_on) return std::nullopt;
  const bool was_trained = config.data.format == "conversations";
  std::string format = was_trained ? config.data.chat_format : "auto";
  if (!options.chat.format.empty()) format = options.chat.format;
  return open_chat(config.data.tokenizer, format, config.model, "--chat-format");
}

void run_generate(const GenerateArguments& options, const Job& job) {
  check_chat(options);
  const ModelFiles files = find_model(options.checkpoint, options.adapter);
  const std::filesystem::path& checkpoint = files.checkpoint;
  RunConfig config = run_config_of(files);
  const std::string notes = checkpoint_notes(checkpoint);
  if (job.rank() == 0) fmt::print(stderr, "{}", notes);
  leave_out(options.dead_experts, config.model);
  apply(options.compute, config.compute);
  config.parallel.placement = options.placement;
  if (!options.row_bits.empty()) config.compute.row_bits = options.row_bits;
  if (config.compute.row_bits == "independent") config.exchange.combine = "slot_order";
  const auto tokenizer = tokenizer_of(checkpoint, config);
  std::vector<int32_t> end_tokens = end_tokens_of(checkpoint, config.model.vocab_size);
  const std::optional<Chat> chat_with = chat_of(options, config);
  if (chat_with && std::ranges::find(end_tokens, chat_with->end_token()) == end_tokens.end()) {
    end_tokens.push_back(chat_with->end_token());
  }
  RequestOptions wanted = options.requests;
  const std::string sampling_note = apply_sampling_defaults(checkpoint, options.given, wanted.sampling);
  if (job.rank() == 0) fmt::print(stderr, "{}", sampling_note);
  wanted.sampling.seed = static_cast<uint64_t>(options.seed);
  wanted.sampling.num_ids = tokenizer->vocab_size();
  wanted.sampling.more = end_tokens;
  const Requests requests = requests_of(options, wanted, config, *tokenizer);
  for (const std::string& note : requests.notes) {
    if (job.rank() == 0) fmt::print(stderr, "note: {}\n", note);
  }
  std::optional<TaskLabeller> labeller;
  if (config.task.recognise) labeller.emplace(task_options(config.task), tokenizer, config.model.eos_token_id);
  WorkerOptions worker_options = inference_options(config);
  worker_options.model = with_top_k(worker_options.model, requests.top_k);
  worker_options.model.num_nextn_predict_layers = num_drafts(checkpoint, config.model, options.speculate);
  std::optional<RecordedRouting> replay;
  if (!options.replay.empty()) replay.emplace(options.replay, config.model, std::nullopt);
  job.on_ranks(options.ranks, [&](Communicator world) {
    Worker worker(std::move(world), worker_options);
    load_model(files, worker.store());
    if (worker.world().rank() == 0) {
      const std::string note = tokenizer->note_on(fmt::format("{}", fmt::join(requests.prompts, "\n")));
      if (!note.empty()) fmt::print(stderr, "note: {}\n", note);
    }
    if (worker.world().rank() == 0 && options.explain) {
      const size_t samples = requests.texts.size() / requests.prompts.size();
      for (size_t i = 0; i < requests.prompts.size(); ++i) {
        fmt::print(stderr, "{}", explain(requests.prompts[i], config, requests.texts[i * samples].facts));
      }
    }
    std::optional<ExpertCache> cache;
    if (options.cache_mib > 0) cache.emplace(static_cast<size_t>(options.cache_mib) << 20);
    std::optional<PassRebalancer> rebalancer;
    if (options.rebalance != 0) rebalancer.emplace(worker, options.rebalance);
    GenerateOptions generate_options = {.max_new = options.max_new,
                                        .end_tokens = end_tokens,
                                        .stop_strings = options.stop,
                                        .piece = [&tokenizer](int32_t token) { return tokenizer->piece(token); },
                                        .log_probabilities = !options.logprobs.empty(),
                                        .cache = cache ? &*cache : nullptr,
                                        .rebalancer = rebalancer ? &*rebalancer : nullptr,
                                        .replay = replay ? &*replay : nullptr,
                                        .labeller = labeller ? &*labeller : nullptr};
    if (cache) generate_options.batch = 1;  // what it knows are the rows of a whole pass
    if (options.batch > 0) generate_options.batch = options.batch;
    if (chat_with) {
      ChatOptions questions = options.chat;
      questions.prompts = options.requests.prompts;
      const RequestFacts facts = {.task = task_of(options.requests.task)};
      chat(worker, questions, {*chat_with, *tokenizer, wanted.sampling, facts, generate_options});
    } else {
      print_texts(worker, requests, *tokenizer, generate_options, options.logprobs);
    }
    if (cache) print_cache(worker, *cache);
    if (rebalancer && worker.world().rank() == 0) {
      const std::string& note = rebalancer->note();
      fmt::print(stderr, "{}\n",
                 note.empty() ? describe(rebalancer->moves()) : "note: --rebalance moves no expert: " + note);
    }
  });
}

}  // namespace

Command generate_command() {
  const auto options = std::make_shared<GenerateArguments>();
  return {
      .name = "generate",
      .summary = "continues texts with the model of a checkpoint",
      .arguments = {checkpoint_argument(options->checkpoint)},
      .options =
          {{"prompts", &options->requests.prompts_file, any(),
            "UTF-8 file with one text per line; empty lines are skipped"},
           {"max-new", &options->max_new, at_least(1), "largest number of new tokens per text"},
           {"temperature", &options->requests.sampling.temperature, at_least(0),
            "divides the logits; 0 takes the likeliest token. The checkpoint's generation_config.json sets other "
            "defaults of this, --top-k and --top-p where it has do_sample = true, and of --repetition-penalty"},
           {"top-k", &options->requests.sampling.top_k, at_least(0), "sample from this many likeliest tokens; 0: all"},
           {"top-p", &options->requests.sampling.top_p, between(0, 1),
            "then from the fewest tokens with this total probability"},
           {"repetition-penalty", &options->requests.sampling.repetition_penalty, more_than(0),
            "divides positive logits of tokens that the text has already, multiplies negative ones; 1: none"},
           {"chat", &options->chat.is_on, any(),
            "speak in turns, in the chat format of the model: each --prompt is a question; without one, each line of "
            "standard input"},
           {"chat-format", &options->chat.format, one_of({"", "auto", "deepseek_v2", "deepseek_v3", "deepseek_r1"}),
            "with --chat; default: that of the run, or what the tokenizer asks for"},
           {"system", &options->chat.system, any(), "with --chat: the system message"},
           {"conversations", &options->chat.conversations, any(),
            "with --chat: JSON Lines file of conversations; each user message without an answer is answered"},
           {"seed", &options->seed, at_least(0), "seed of sampling"},
           {"samples", &options->requests.samples, at_least(1), "texts per prompt, with seeds --seed, --seed + 1, ..."},
           {"batch", &options->batch, at_least(0),
            "largest number of texts at once, over all ranks; 0: 16, or 1 with --cache-mib"},
           {"speculate", &options->speculate, one_of({"auto", "on", "off"}),
            "draft tokens with the MTP modules and verify them (same text); auto: on if "
            "the checkpoint has them"},
           {"cache-mib", &options->cache_mib, between(0, 1 << 20),
            "memory per rank for a cache of expert outputs, in MiB; 0: none"},
           steps_or_auto(
               "rebalance", options->rebalance,
               "passes from one look at the load of experts to the next, after which they move to other ranks "
               "where that pays; auto: 4 passes, later more; 0: they stay. Texts are equal to the bit with "
               "--row-bits independent"),
           {"complexity", &options->requests.complexity, any(),
            "complexity of a request: simple | medium | complex | critical, or auto: by its words. It sets the "
            "experts per token (task.k_... of the run). One for all prompts, or one each, separated by commas"},
           adapter_option(options->adapter),
           task_option(options->requests.task),
           dead_experts_option(options->dead_experts),
           placement_option(options->placement),
           weights_option(options->compute),
           threads_option(options->compute),
           {"replay", &options->replay, any(),
            "a file that score --routing wrote for as many texts: their tokens, prompt and new ones, visit the experts "
            "that it names"},
           {"logprobs", &options->logprobs, any(),
            "JSON Lines file to write, with prompt, tokens and logprobs of each text; with --row-bits independent, "
            "equal "
            "to those of score and train"},
           {"row-bits", &options->row_bits, one_of({"", "fast", "independent"}),
            "in the place of compute.row_bits of the run; independent: the bits of a token do not depend on what is "
            "computed beside it"},
           {"explain", &options->explain, any(), "print the recognised task of each prompt and its keywords"},
           ranks_option(options->ranks)},
      .lists = {{"prompt", &options->requests.prompts, "text to continue"},
                {"stop", &options->stop, "ends a text before this string; end tokens of the checkpoint end it too"}},
      .given = &options->given,
      .run = [options](const Job& job) { run_generate(*options, job); }};
}

}  // namespace cadre
