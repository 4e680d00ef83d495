// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/companion_files.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>

#include "comm/base/check.hpp"
#include "comm/base/fields.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/checkpoint/model_checkpoint.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/json_fields.hpp"

namespace cadre {

TokenizerFiles companion_files(const ModelConfig& model, TokenizerFiles tokenizer, bool tokens_are_bytes) {
  TokenizerFiles files = std::move(tokenizer);
  if (tokens_are_bytes) {
    files[kTokenizerJsonFile] = byte_tokenizer_json();
    files[kTokenizerConfigFile] = byte_tokenizer_config();
  }
  std::string& generation = files[kGenerationConfigFile];
  generation = generation_config_of(model, generation);
  return files;
}

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kEnd = "eos_token_id";
constexpr const char* kBegin = "bos_token_id";
constexpr size_t kMaxEndTokens = 4096;

// null and -1 are no token.
std::vector<int32_t> tokens_in(const json& value, const std::string& where) {
  const json list = value.is_array() ? value : json::array({value});
  CADRE_CHECK(list.size() <= kMaxEndTokens,
              fmt::format("{} lists {} tokens, allowed: at most {}", where, list.size(), kMaxEndTokens));
  std::vector<int32_t> tokens;
  for (const json& token : list) {
    if (!token.is_null() && token != -1) tokens.push_back(token_id(token, where));
  }
  return tokens;
}

template <class Number>
std::optional<Number> number_in(const json& content, const char* key, const Allowed& allowed, const fs::path& file) {
  const auto found = content.find(key);
  if (found == content.end() || found->is_null()) return std::nullopt;
  Number number{};
  FieldValue value = found->dump();
  if (found->is_number_float()) value = found->get<double>();
  if (found->is_number_integer()) value = found->get<int64_t>();
  assign({key, &number, allowed, "mend or remove the key"}, value, file.string() + ": ");
  return number;
}

}  // namespace

std::vector<int32_t> end_tokens_of(const fs::path& checkpoint, int64_t vocab_size) {
  for (const char* name : {kGenerationConfigFile, kConfigFile}) {
    const fs::path file = checkpoint / name;
    if (!fs::exists(file)) continue;
    const json content = read_json_file(file);
    const std::string where = fmt::format("{}: {}", file.string(), kEnd);
    CADRE_CHECK(content.is_object(), fmt::format("{}: not a JSON object", file.string()));
    if (!content.contains(kEnd) || content[kEnd].is_null()) continue;
    std::vector<int32_t> tokens = tokens_in(content[kEnd], where);
    for (const int32_t token : tokens) {
      CADRE_CHECK(token < vocab_size,
                  fmt::format("{} = {}, allowed: integer in [0, vocab_size = {})", where, token, vocab_size),
                  "does it belong to this model?");
    }
    return tokens;
  }
  return {};
}

SamplingDefaults sampling_defaults_of(const fs::path& checkpoint) {
  const fs::path file = checkpoint / kGenerationConfigFile;
  if (!fs::exists(file)) return {};
  const json content = read_json_file(file);
  CADRE_CHECK(content.is_object(), fmt::format("{}: not a JSON object", file.string()));
  SamplingDefaults defaults = {number_in<double>(content, "temperature", at_least(0), file),
                               number_in<int64_t>(content, "top_k", at_least(0), file),
                               number_in<double>(content, "top_p", between(0, 1), file),
                               number_in<double>(content, "repetition_penalty", more_than(0), file)};
  const bool samples = content.value("do_sample", json()) == true;
  if (!samples) defaults.temperature.reset(), defaults.top_k.reset(), defaults.top_p.reset();
  return defaults;
}

std::string generation_config_of(const json& config) {
  json content = json::object();
  for (const char* key : {kBegin, kEnd}) {
    if (config.contains(key) && !config[key].is_null()) content[key] = config[key];
  }
  return content.dump(2) + "\n";
}

std::string generation_config_of(const ModelConfig& model, const std::string& kept) {
  json content = json::object();
  if (!kept.empty()) {
    content = json::parse(kept, nullptr, /*allow_exceptions=*/false);
    CADRE_CHECK(content.is_object(), fmt::format("{} beside the tokenizer: not a JSON object", kGenerationConfigFile),
                "mend or remove it");
  }
  if (!content.contains(kBegin) && model.bos_token_id >= 0) content[kBegin] = model.bos_token_id;
  if (model.eos_token_id >= 0) {
    std::vector<int32_t> tokens = tokens_in(content.value(kEnd, json()), kGenerationConfigFile);
    const auto end = static_cast<int32_t>(model.eos_token_id);
    if (std::ranges::find(tokens, end) == tokens.end()) tokens.insert(tokens.begin(), end);
    content[kEnd] = tokens.size() == 1 ? json(end) : json(tokens);
  }
  return content.dump(2) + "\n";
}

}  // namespace cadre
