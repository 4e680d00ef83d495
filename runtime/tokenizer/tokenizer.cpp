// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/tokenizer.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <unordered_set>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"
#include "runtime/tokenizer/added_tokens.hpp"
#include "runtime/tokenizer/byte_level_bpe.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/json_fields.hpp"
#include "runtime/tokenizer/sentencepiece.hpp"
#include "runtime/tokenizer/tiktoken.hpp"

namespace cadre {

std::string Tokenizer::decode(std::span<const int32_t> tokens) const {
  std::string text;
  for (const int32_t token : tokens) text += piece(token);
  return text;
}

namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// What may lie beside a tokenizer.json or tokenizer.model and belongs to it.
constexpr const char* kCompanions[] = {
    kTokenizerConfigFile,   "special_tokens_map.json", kAddedTokensFile, "chat_template.jinja",
    "chat_template.json",   "generation_config.json",  "vocab.json",     "merges.txt",
    "tokenization_kimi.py", "tokenization_moonshot.py"};

constexpr uintmax_t kMaxFileBytes = uintmax_t{64} << 20;
constexpr int kMaxDepth = 32;
constexpr const char* kOpenHint =
    "data.tokenizer is bytes, a tokenizer.json, a tokenizer.model, a tiktoken.model or a directory with one";

std::string read_bytes(const fs::path& path) {
  expect_regular_file(path, kOpenHint);
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  CADRE_CHECK(size <= kMaxFileBytes,
              fmt::format("{} has {} bytes, allowed: at most {}", path.string(), size, kMaxFileBytes), kOpenHint);
  std::ifstream file(path, std::ios::binary);
  std::string bytes(size, '\0');
  file.read(bytes.data(), static_cast<std::streamsize>(size));
  CADRE_CHECK(file, fmt::format("{}: not a file that can be read", path.string()), kOpenHint);
  return bytes;
}

std::string read_main_file(const fs::path& path) {
  std::string bytes = read_bytes(path);
  CADRE_CHECK(!bytes.empty(), fmt::format("{}: an empty file", path.string()), kOpenHint);
  return bytes;
}

void read_companions(const fs::path& folder, TokenizerFiles& files) {
  for (const char* name : kCompanions) {
    if (fs::exists(folder / name)) files.emplace(name, read_bytes(folder / name));
  }
  if (!fs::is_directory(folder / kMoreTemplatesFolder)) return;
  for (const auto& item : fs::directory_iterator(folder / kMoreTemplatesFolder)) {
    const fs::path name = fs::path(kMoreTemplatesFolder) / item.path().filename();
    if (name.extension() == ".jinja") files.emplace(name.generic_string(), read_bytes(folder / name));
  }
}

bool is_json(std::string_view bytes) {
  const size_t first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && bytes[first] == '{';
}

// Refuses what is nested too deep, and keys that come twice in an object: readers differ in which of them counts.
json parse(const std::string& bytes, const char* name) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, json::parse_event_t event, const json& value) {
    CADRE_CHECK(depth <= kMaxDepth, fmt::format("{} is nested more than {} deep", name, kMaxDepth));
    if (event == json::parse_event_t::object_start) keys.emplace_back();
    if (event == json::parse_event_t::object_end) keys.pop_back();
    if (event == json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      CADRE_CHECK(keys.back().insert(key).second,
                  fmt::format("{} has the key {} twice in one object", name, quoted(key)));
    }
    return true;
  };
  try {
    return json::parse(bytes, check);
  } catch (const json::exception& error) {
    throw Error(ErrorKind::input, fmt::format("{} is not JSON: {}", name, error.what()));
  }
}

// The content of a special token, which may be an object that says more.
std::string content_of(const json& config, const char* name) {
  const json token = config.value(name, json());
  return token.is_object() ? text(token, name, "content", "") : text(config, kTokenizerConfigFile, name, "");
}

// add_bos_token, where it is there, decides over what tokenizer.json says; so does eos_token, if it has an id.
void read_config(const json& config, Tokenizer& tokenizer) {
  CADRE_CHECK(config.is_object(), fmt::format("{} is no object", kTokenizerConfigFile));
  if (const auto end = tokenizer.find(content_of(config, "eos_token"))) tokenizer.set_end_of_text(end);
  tokenizer.set_begin_of_text(tokenizer.find(content_of(config, "bos_token")));
  if (!config.contains("add_bos_token")) return;
  std::vector<int32_t> prefix;
  if (flag(config, kTokenizerConfigFile, "add_bos_token", false)) {
    const std::string content = content_of(config, "bos_token");
    const auto id = tokenizer.find(content);
    CADRE_CHECK(id.has_value(),
                fmt::format("{}: bos_token {} is not in the vocabulary", kTokenizerConfigFile, quoted(content)));
    prefix.push_back(*id);
  }
  tokenizer.set_prompt_prefix(std::move(prefix));
}

// Later lists say nothing new of a content that an earlier one has.
void add_new(const std::vector<AddedToken>& more, std::vector<AddedToken>& tokens) {
  for (const AddedToken& token : more) {
    const auto known = std::ranges::find(tokens, token.content, &AddedToken::content);
    CADRE_CHECK(known == tokens.end() || known->id == token.id,
                fmt::format("the added token {} has the ids {} and {} in two files", quoted(token.content), known->id,
                            token.id));
    if (known == tokens.end()) tokens.push_back(token);
  }
}

// What transformers does with a tokenizer.model because of the files beside it.
SentencePieceRules rules_beside(const TokenizerFiles& files) {
  SentencePieceRules rules = {.finds_special_pieces = true};
  json config = json::object();
  if (const auto file = files.find(kTokenizerConfigFile); file != files.end()) {
    config = parse(file->second, kTokenizerConfigFile);
    CADRE_CHECK(config.is_object(), fmt::format("{} is no object", kTokenizerConfigFile));
  }
  const std::string name = text(config, kTokenizerConfigFile, "tokenizer_class", "");
  rules.is_llama = name == "LlamaTokenizer" || name == "LlamaTokenizerFast";
  const bool is_general =
      name.empty() || name == "PreTrainedTokenizerFast" || name == "PreTrainedTokenizer" || name == "TokenizersBackend";
  CADRE_CHECK(rules.is_llama || is_general,
              fmt::format("{}: tokenizer_class = {}, allowed with a tokenizer.model: LlamaTokenizer | "
                          "LlamaTokenizerFast | PreTrainedTokenizerFast | TokenizersBackend",
                          kTokenizerConfigFile, quoted(name)));
  if (rules.is_llama) {
    rules.prefix = flag(config, kTokenizerConfigFile, "legacy", false) ? SentencePieceRules::Prefix::all
                                                                       : SentencePieceRules::Prefix::first;
    if (!flag(config, kTokenizerConfigFile, "add_prefix_space", true)) rules.prefix = SentencePieceRules::Prefix::none;
  }
  add_new(added_tokens_of_tokenizer_config(config), rules.added);
  if (const auto file = files.find(kTokenizerJsonFile); file != files.end()) {
    add_new(added_tokens_of_tokenizer_json(parse(file->second, kTokenizerJsonFile)), rules.added);
  }
  if (const auto file = files.find(kAddedTokensFile); file != files.end()) {
    std::vector<AddedToken> tokens = added_tokens_of_map(parse(file->second, kAddedTokensFile));
    for (AddedToken& token : tokens) token.is_normalized = rules.is_llama;
    add_new(tokens, rules.added);
  }
  std::ranges::sort(rules.added, {}, &AddedToken::id);
  return rules;
}

// The words that a tiktoken.model is used with are not in the file: they belong to the class.
std::vector<AddedToken> tiktoken_tokens_beside(const TokenizerFiles& files) {
  const auto file = files.find(kTokenizerConfigFile);
  CADRE_CHECK(file != files.end(), fmt::format("{} without {}", kTiktokenFile, kTokenizerConfigFile),
              "it names the special tokens and the class of the tokenizer");
  const json config = parse(file->second, kTokenizerConfigFile);
  const std::string name = text(config, kTokenizerConfigFile, "tokenizer_class", "");
  CADRE_CHECK(name == "TikTokenTokenizer",
              fmt::format("{}: tokenizer_class = {}, allowed with a {}: TikTokenTokenizer", kTokenizerConfigFile,
                          quoted(name), kTiktokenFile),
              "that of Moonlight and Kimi K2");
  return added_tokens_of_tokenizer_config(config);
}

std::unique_ptr<Tokenizer> make(const TokenizerFiles& files) {
  std::unique_ptr<Tokenizer> tokenizer;
  const char* name = main_file_of(files);
  if (name == std::string_view(kTokenizerModelFile)) {
    tokenizer = make_sentencepiece(files.at(name), rules_beside(files));
  } else if (name == std::string_view(kTiktokenFile)) {
    tokenizer = std::make_unique<Tiktoken>(files.at(name), tiktoken_tokens_beside(files));
  } else {
    tokenizer = std::make_unique<ByteLevelBpe>(parse(files.at(name), name));
  }
  if (const auto config = files.find(kTokenizerConfigFile); config != files.end()) {
    read_config(parse(config->second, kTokenizerConfigFile), *tokenizer);
  }
  return tokenizer;
}

}  // namespace

const char* main_file_of(const TokenizerFiles& files) {
  const bool has_model = files.contains(kTokenizerModelFile);
  const bool has_json = files.contains(kTokenizerJsonFile);
  if (has_model && (has_sentencepiece() || !has_json)) return kTokenizerModelFile;
  if (has_json) return kTokenizerJsonFile;
  return files.contains(kTiktokenFile) ? kTiktokenFile : nullptr;
}

TokenizerFiles read_tokenizer_files(const std::string& where) {
  TokenizerFiles files;
  if (where == kByteTokenizer) return files;
  const fs::path path = where;
  CADRE_CHECK(fs::exists(path), fmt::format("{}: there is no such tokenizer", where), kOpenHint);
  if (fs::is_directory(path)) {
    for (const char* name : {kTokenizerModelFile, kTokenizerJsonFile, kTiktokenFile}) {
      if (fs::exists(path / name)) files.emplace(name, read_main_file(path / name));
    }
  } else {
    std::string bytes = read_main_file(path);
    const char* name = is_json(bytes) ? kTokenizerJsonFile : kTokenizerModelFile;
    if (path.filename() == kTiktokenFile) name = kTiktokenFile;
    files.emplace(name, std::move(bytes));
  }
  const char* name = main_file_of(files);
  if (name == nullptr || files.at(name) == byte_tokenizer_json()) return {};
  read_companions(fs::is_directory(path) ? path : path.parent_path(), files);
  return files;
}

std::unique_ptr<Tokenizer> make_tokenizer(const TokenizerFiles& files, const std::string& where) {
  if (files.empty()) return std::make_unique<ByteTokenizer>();
  try {
    return make(files);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", where, error.text()),
                error.hint().empty() ? kOpenHint : error.hint());
  }
}

}  // namespace cadre
