// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/generate.hpp"

#include <utility>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

Task<void> decode_into(Tensor& logits, const Model& model, LaneContext& ctx, Tensor ids, Sequences sequences,
                       std::vector<KvCache>& caches) {
  Task<Tensor> decode = model.decode(ctx, ids, sequences, caches);
  logits = co_await decode;
}

// One text under way, on the first rank of the expert-parallel group; on the others a batch of no texts, which takes
// part in every exchange.
class Decoder {
 public:
  Decoder(Worker& worker, int64_t capacity, const GenerateOptions& options)
      : worker_(worker),
        expert_cache_(options.cache),
        facts_(options.facts),
        num_texts_(worker.expert_group().rank() == 0 ? 1 : 0) {
    Context ctx{worker.kernels(), cache_arena_, DType::f32};
    caches_ = worker.model().make_caches(ctx, num_texts_, capacity);
  }

  bool holds_text() const { return num_texts_ == 1; }
  int64_t num_read() const { return num_read_; }

  // Reads on, and returns the logits [V] of what comes next; empty without a text.
  std::vector<float> read(std::vector<int32_t> tokens) {
    const auto length = static_cast<int64_t>(tokens.size());
    std::vector<int32_t> positions(tokens.size());
    const int64_t rows = num_texts_ * length;
    const Sequences sequences{num_texts_, length, Tensor(positions.data(), DType::i32, {rows})};
    fill_positions(sequences, num_read_);
    num_read_ += length;

    const ArenaScope activations(worker_.arena());
    LaneContext ctx = worker_.inference_context();
    ctx.expert_cache = expert_cache_;
    ctx.decoding = true;
    ctx.tokens.first = num_read_ - length;
    std::vector<int32_t> tasks(static_cast<size_t>(rows), facts_.task);
    std::vector<int32_t> num_experts(static_cast<size_t>(rows), static_cast<int32_t>(facts_.num_experts));
    ctx.tokens.task = Tensor(tasks.data(), DType::i32, {rows});
    if (facts_.num_experts > 0) ctx.tokens.num_experts = Tensor(num_experts.data(), DType::i32, {rows});
    Tensor logits;
    Task<void> task =
        decode_into(logits, worker_.model(), ctx, Tensor(tokens.data(), DType::i32, {rows}), sequences, caches_);
    worker_.run(task);
    const auto* first = logits.data<float>();
    return {first, first + logits.numel()};
  }

 private:
  Worker& worker_;
  ExpertCache* expert_cache_;
  RequestFacts facts_;
  int64_t num_texts_;
  Arena cache_arena_{Arena::Mode::real, /*poison=*/false, worker_.kernels().memory()};
  std::vector<KvCache> caches_;
  int64_t num_read_ = 0;
};

// Tells all ranks of the expert-parallel group whether the text ends here.
bool agree_on_end(const Worker& worker, bool ends) {
  int32_t flag = ends ? 1 : 0;
  Request told = worker.expert_group().broadcast(std::span(&flag, 1), 0);
  worker.await(told);
  return flag != 0;
}

}  // namespace

void generate(Worker& worker, std::span<const int32_t> prompt, const GenerateOptions& options,
              const std::function<void(int32_t)>& emit) {
  const ModelConfig& config = worker.model().config();
  const auto prompt_length = static_cast<int64_t>(prompt.size());
  const int64_t room = config.max_position_embeddings - prompt_length;
  CADRE_CHECK(prompt_length >= 1, "the prompt is empty, allowed: at least one token",
              "give it some text to go on with");
  CADRE_CHECK(options.max_new <= room,
              fmt::format("{} new tokens after a prompt of {}, allowed: at most {} together", options.max_new,
                          prompt_length, config.max_position_embeddings),
              "max_position_embeddings of the model; ask for fewer new tokens or shorten the prompt");

  Decoder decoder(worker, prompt_length + options.max_new, options);
  std::vector<int32_t> unread(prompt.begin(), prompt.end());
  for (int64_t i = 0; i < options.max_new; ++i) {
    worker.lane().position.step = i + 1;
    const std::vector<float> logits = decoder.read(std::move(unread));
    const int32_t token =
        decoder.holds_text() ? sample_token(logits, options.sampling, decoder.num_read()) : int32_t{0};
    const bool may_end = config.eos_token_id >= 0;
    if (may_end && agree_on_end(worker, decoder.holds_text() && token == config.eos_token_id)) return;
    if (decoder.holds_text()) emit(token);
    unread = {token};
  }
}

}  // namespace cadre
