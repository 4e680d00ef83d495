// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/key_synonyms.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "comm/base/fields.hpp"

namespace cadre {
namespace {

struct Synonym {
  std::string_view name;
  std::string_view key;
};

constexpr std::array<Synonym, 44> kSynonyms = {{
    {"accumulation_steps", "train.micro_batches"},
    {"adam_beta1", "train.beta1"},
    {"adam_beta2", "train.beta2"},
    {"adam_epsilon", "train.epsilon"},
    {"batch_size", "train.batch"},
    {"block_size", "data.sequence_length"},
    {"checkpoint_dir", "out"},
    {"context_length", "data.sequence_length"},
    {"dataset", "data.path"},
    {"dim", "model.hidden_size"},
    {"dtype", "compute.precision"},
    {"eval_interval", "train.eval_every"},
    {"eval_steps", "train.eval_every"},
    {"expert_parallel", "parallel.expert"},
    {"ffn_dim", "model.intermediate_size"},
    {"global_batch_size", "train.batch"},
    {"gradient_accumulation_steps", "train.micro_batches"},
    {"gradient_clipping", "train.grad_clip"},
    {"log_interval", "log.every"},
    {"logging_steps", "log.every"},
    {"lr", "train.learning_rate"},
    {"max_grad_norm", "train.grad_clip"},
    {"max_iters", "train.steps"},
    {"max_steps", "train.steps"},
    {"min_lr", "train.min_learning_rate"},
    {"n_embd", "model.hidden_size"},
    {"n_experts", "model.n_routed_experts"},
    {"n_head", "model.num_attention_heads"},
    {"n_heads", "model.num_attention_heads"},
    {"n_layer", "model.num_hidden_layers"},
    {"n_layers", "model.num_hidden_layers"},
    {"num_experts", "model.n_routed_experts"},
    {"num_layers", "model.num_hidden_layers"},
    {"num_steps", "train.steps"},
    {"out_dir", "out"},
    {"output_dir", "out"},
    {"pipeline_parallel", "parallel.pipeline"},
    {"save_interval", "checkpoint.every"},
    {"save_steps", "checkpoint.every"},
    {"seq_len", "data.sequence_length"},
    {"top_k", "model.num_experts_per_tok"},
    {"topk", "model.num_experts_per_tok"},
    {"warmup", "train.warmup_steps"},
    {"wd", "train.weight_decay"},
}};

}  // namespace

std::string key_called(std::string_view name) {
  name.remove_prefix(std::min(name.find_first_not_of('-'), name.size()));
  std::string plain(name.substr(name.rfind('.') + 1));
  std::ranges::replace(plain, '-', '_');
  const auto found = std::ranges::find(kSynonyms, plain, &Synonym::name);
  return found == kSynonyms.end() ? "" : std::string(found->key);
}

std::vector<std::string> synonym_keys() {
  std::vector<std::string> keys;
  for (const Synonym& synonym : kSynonyms) keys.emplace_back(synonym.key);
  return keys;
}

std::string key_hint(std::string_view name, std::span<const std::string> known) {
  const std::string key = key_called(name);
  return key.empty() ? nearest_name_hint(name, known) : fmt::format("Cadre's name is {}", key);
}

}  // namespace cadre
