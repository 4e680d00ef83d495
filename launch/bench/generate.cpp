// SPDX-License-Identifier: Apache-2.0
// `cadre bench generate`: tokens a second of prefill and of decoding, with random weights, prompts and draws, beside what the
// memory allows: a token needs every weight it meets once, so that it cannot take less time than reading them. The speed of
// reading is measured in turn in the same process, on all ranks at once, over as many bytes as decoding reads.
#include "runtime/infer/generate.hpp"

#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/random.hpp"
#include "comm/base/trace.hpp"
#include "launch/bench/bench.hpp"
#include "layers/kernels/kernels.hpp"
#include "layers/model/accounting.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"

namespace cadre {
namespace {

struct BenchGenerateArguments {
  std::string model;
  int64_t prompt = 256;
  int64_t max_new = 32;
  int64_t batch = 1;
  std::string precision = "fp32";
  std::string weights = "fp32";
  std::string strategy = "auto";
  int64_t iterations = 5;
  int64_t threads = 1;
  int64_t ranks = 0;
  std::string json;
};

// A small DeepSeek-V3 of which a token meets some 300 MB in fp32, several times what caches hold.
ModelConfig default_model() {
  ModelConfig model;
  model.model_type = "deepseek_v3";
  model.vocab_size = 16384;
  model.hidden_size = 1024;
  model.num_hidden_layers = 6;
  model.max_position_embeddings = 4096;
  model.num_attention_heads = 16;
  model.q_lora_rank = 384;
  model.kv_lora_rank = 256;
  model.qk_nope_head_dim = 64;
  model.qk_rope_head_dim = 32;
  model.v_head_dim = 64;
  model.intermediate_size = 4096;
  model.first_k_dense_replace = 1;
  model.n_routed_experts = 16;
  model.num_experts_per_tok = 4;
  model.n_shared_experts = 1;
  model.moe_intermediate_size = 384;
  model.scoring_func = ScoreFunction::sigmoid;
  model.norm_topk_prob = true;
  fill_defaults(model);
  return model;
}

WorkerOptions worker_options(const BenchGenerateArguments& options) {
  WorkerOptions worker;
  worker.model = options.model.empty() ? default_model() : read_model_config(options.model);
  worker.model.num_nextn_predict_layers = 0;
  worker.model.eos_token_id = -1;
  worker.exchange.strategy = options.strategy;
  worker.compute.precision = options.precision;
  worker.compute.weights = options.weights;
  worker.compute.threads = options.threads;
  worker.with_grad = false;
  return worker;
}

double bytes_a_weight(const BenchGenerateArguments& options) {
  if (options.weights == "int8") return 1.0 + 4.0 / 32.0;  // with a scale for 32
  if (options.weights == "fp8") return 1.0 + 4.0 / 128.0;
  return options.weights == "bf16" || options.precision == "bf16" ? 2.0 : 4.0;
}

// Weights that a pass with one token of each text reads: experts as often as they are expected to be visited.
double weight_bytes(const ModelConfig& model, const BenchGenerateArguments& options) {
  const ParameterCount count = count_parameters(model);
  const double bytes = bytes_a_weight(options);
  const double met = static_cast<double>(count.active - (model.tie_word_embeddings ? 0 : count.embedding));
  if (model.n_routed_experts == 0) return bytes * met;
  const auto [experts, top_k] = std::pair(model.n_routed_experts, model.num_experts_per_tok);
  const double an_expert = static_cast<double>(count.total - count.active) / static_cast<double>(experts - top_k);
  const double visited = static_cast<double>(experts) * expected_coverage(experts, top_k, options.batch);
  return bytes * (met + an_expert * (visited - static_cast<double>(top_k)));
}

double seconds_since(int64_t begin_ns) { return static_cast<double>(trace_clock_ns() - begin_ns) * 1e-9; }

constexpr size_t kBytes = size_t{256} << 20;

// Bytes that one rank reads from memory in a second while the others do the same.
class MemoryReader {
 public:
  explicit MemoryReader(int64_t threads) : memory_(kBytes), threads_(static_cast<size_t>(threads)) {
    for (size_t i = 0; i < kWords; ++i) memory_.as<uint64_t>()[i] = i;
  }

  double bytes_per_second(int64_t repeats) {
    const int64_t begin = trace_clock_ns();
    std::vector<uint64_t> sums(threads_);
    {
      std::vector<std::jthread> readers;
      for (size_t t = 1; t < threads_; ++t) readers.emplace_back([&, t] { sums[t] = sum_part(t, repeats); });
      sums[0] = sum_part(0, repeats);
    }
    const double seconds = seconds_since(begin);
    const uint64_t expected = static_cast<uint64_t>(repeats) * (uint64_t{kWords} * (kWords - 1) / 2);
    CADRE_CHECK(std::accumulate(sums.begin(), sums.end(), uint64_t{0}) == expected,
                "memory returned other values than were written");
    return static_cast<double>(repeats) * static_cast<double>(kBytes) / seconds;
  }

 private:
  uint64_t sum_part(size_t part, int64_t repeats) const {
    const auto* words = memory_.as<uint64_t>();
    uint64_t sum = 0;
    for (int64_t i = 0; i < repeats; ++i) {
      sum = std::accumulate(words + kWords * part / threads_, words + kWords * (part + 1) / threads_, sum);
    }
    return sum;
  }

  static constexpr size_t kWords = kBytes / sizeof(uint64_t);
  Buffer memory_;
  size_t threads_;
};

struct Times {
  std::vector<double> prefill, decode, memory;  // by iteration, of rank 0: seconds, seconds of a pass, bytes a second
};

std::vector<TextRequest> draw_texts(const BenchGenerateArguments& options, int64_t vocabulary, int64_t iteration) {
  std::vector<TextRequest> texts(static_cast<size_t>(options.batch));
  for (size_t text = 0; text < texts.size(); ++text) {
    const auto id = static_cast<uint64_t>(iteration) * 4096 + text;
    const Random random(13, "bench generate", id);
    for (int64_t i = 0; i < options.prompt; ++i) {
      const uint64_t token = random.below(static_cast<uint64_t>(vocabulary), static_cast<uint64_t>(i));
      texts[text].prompt.push_back(static_cast<int32_t>(token));
    }
    texts[text].sampling.seed = id;
  }
  return texts;
}

// The first token of a text ends its prefill, each further one is a pass.
void time_texts(Worker& worker, const BenchGenerateArguments& options, int64_t iteration, Times& times) {
  const std::vector<TextRequest> texts = draw_texts(options, worker.model().config().vocab_size, iteration);
  Request together = worker.world().barrier();
  worker.await(together);
  const int64_t begin = trace_clock_ns();
  int64_t first_token = begin;
  int64_t num_tokens = 0;
  generate(worker, texts, {.max_new = options.max_new, .batch = options.batch, .speculate = false},
           [&](size_t /*text*/, std::optional<int32_t> token) {
             if (token && ++num_tokens == options.batch) first_token = trace_clock_ns();
           });
  times.decode.push_back(seconds_since(first_token) / static_cast<double>(options.max_new - 1));
  times.prefill.push_back(static_cast<double>(first_token - begin) * 1e-9);
}

void time_memory(Worker& worker, const BenchGenerateArguments& options, MemoryReader& reader, Times& times) {
  const double decoded = static_cast<double>(options.max_new - 1) * weight_bytes(worker.model().config(), options) /
                         static_cast<double>(worker.world().size());
  Request together = worker.world().barrier();
  worker.await(together);
  const double mine = reader.bytes_per_second(1 + static_cast<int64_t>(decoded / kBytes));
  times.memory.push_back(worker.await(worker.world().all_reduce(mine, ReduceOp::sum)));
}

void report(const Worker& worker, const ModelConfig& model, const BenchGenerateArguments& options, const Times& times) {
  const double bytes = weight_bytes(model, options);
  const Summary prefill = summarise(times.prefill);
  const Summary decode = summarise(times.decode);
  const double memory = summarise(times.memory).p50;
  const auto batch = static_cast<double>(options.batch);
  const double prefill_rate = batch * static_cast<double>(options.prompt) / prefill.p50;
  const double decode_rate = batch / decode.p50;
  const double limit = batch * memory / bytes;
  fmt::print("generate {} ranks, {} texts of {} + {} tokens, {}, {}, {} parameters, median of {}\n",
             worker.world().size(), options.batch, options.prompt, options.max_new, options.precision,
             worker.exchange_name(), count_parameters(model).total, options.iterations);
  fmt::print("  prefill {:9.1f} tok/s\n", prefill_rate);
  fmt::print("  decode  {:9.1f} tok/s   a pass min {:.2f}  p50 {:.2f}  p95 {:.2f} ms\n", decode_rate, 1e3 * decode.min,
             1e3 * decode.p50, 1e3 * decode.p95);
  fmt::print("  limit   {:9.1f} tok/s   {:.1f} MB of weights a pass at {:.2f} GB/s; decode reaches {:.1f} % of it\n",
             limit, bytes * 1e-6, memory * 1e-9, 100.0 * decode_rate / limit);
  if (options.json.empty()) return;
  write_json_report(options.json,
                    {{"bench", "generate"},
                     {"ranks", worker.world().size()},
                     {"batch", options.batch},
                     {"prompt", options.prompt},
                     {"max_new", options.max_new},
                     {"precision", options.precision},
                     {"weights", options.weights},
                     {"strategy", worker.exchange_name()},
                     {"parameters", count_parameters(model).total},
                     {"prefill_tokens_per_second", prefill_rate},
                     {"decode_tokens_per_second", decode_rate},
                     {"pass_ms", {{"min", 1e3 * decode.min}, {"p50", 1e3 * decode.p50}, {"p95", 1e3 * decode.p95}}},
                     {"weight_bytes", bytes},
                     {"memory_bytes_per_second", memory},
                     {"limit_tokens_per_second", limit},
                     {"share_of_limit", decode_rate / limit}});
}

void bench_generate(Communicator world, const BenchGenerateArguments& options) {
  const WorkerOptions worker_opts = worker_options(options);
  Worker worker(std::move(world), worker_opts);
  worker.store().initialise(1);
  MemoryReader reader(options.threads);
  Times times;
  for (int64_t i = 0; i <= options.iterations; ++i) {  // the first warms up
    Times warm_up;
    Times& counted = i == 0 ? warm_up : times;
    time_texts(worker, options, i, counted);
    time_memory(worker, options, reader, counted);
  }
  if (worker.world().rank() == 0) report(worker, worker_opts.model, options, times);
}

}  // namespace

Command bench_generate_command() {
  const auto options = std::make_shared<BenchGenerateArguments>();
  return {.name = "generate",
          .summary = "measures tokens per second of prefill and decoding, and the limit set by reading the weights",
          .options = {{"model", &options->model, any(),
                       "checkpoint directory or config.json with the shape; default: a built-in shape"},
                      {"prompt", &options->prompt, at_least(1), "tokens of a prompt"},
                      {"max-new", &options->max_new, at_least(2), "new tokens per text"},
                      {"batch", &options->batch, at_least(1), "texts at once, over all ranks"},
                      {"precision", &options->precision, one_of({"fp32", "bf16"}), "type of the products"},
                      {"weights", &options->weights, one_of({"fp32", "bf16", "int8", "fp8"}),
                       "format that the weights are kept in"},
                      {"strategy", &options->strategy, one_of(strategy_names({"auto"})), "strategy of the exchange"},
                      {"iterations", &options->iterations, at_least(1), "measured iterations"},
                      {"threads", &options->threads, at_least(1), "threads that compute in a rank"},
                      ranks_option(options->ranks),
                      {"json", &options->json, any(), "also write the result to this file, as JSON"}},
          .run = [options](const Job& job) {
            job.on_ranks(options->ranks, [&](Communicator world) { bench_generate(std::move(world), *options); });
          }};
}

}  // namespace cadre
