// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/byte_level_bpe.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "comm/base/check.hpp"
#include "runtime/tokenizer/added_tokens.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/json_fields.hpp"
#include "runtime/tokenizer/nfc.hpp"
#include "runtime/tokenizer/utf8.hpp"

namespace cadre {
namespace {

using nlohmann::json;

constexpr const char* kByteLevelBpeHint =
    "only byte-level tokenizers are read, in the style of GPT-2, Llama 3 and DeepSeek";
constexpr size_t kMaxRemembered = size_t{1} << 16;  // words of one text
constexpr size_t kMaxRememberedWord = 64;           // bytes

// Whether a text is brought to NFC first. Other steps that would change it are refused.
bool read_normalizer(const json& file) {
  json normalizer = file.value("normalizer", json());
  if (type_of(normalizer, "normalizer") == "Sequence") {
    const json steps = field(normalizer, "normalizer", "normalizers", json::value_t::array);
    if (steps.empty()) return false;
    if (steps.size() == 1) normalizer = steps.front();
  }
  if (normalizer.is_null()) return false;
  const std::string type = type_of(normalizer, "normalizer");
  CADRE_CHECK(type == "NFC", fmt::format("normalizer = {}, allowed: none | NFC", quoted(type)), kByteLevelBpeHint);
  if (!has_nfc()) to_nfc("");
  return true;
}

void check_model(const json& model) {
  const std::string type = text(model, "model", "type", "BPE");
  CADRE_CHECK(type == "BPE", fmt::format("model.type = {}, allowed: BPE", quoted(type)), kByteLevelBpeHint);
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    CADRE_CHECK(text(model, "model", name, "").empty(), fmt::format("model.{} is not empty, allowed: none", name),
                kByteLevelBpeHint);
  }
  CADRE_CHECK(!flag(model, "model", "byte_fallback", false), "model.byte_fallback = true, allowed: false",
              kByteLevelBpeHint);
  const json dropout = model.value("dropout", json());
  CADRE_CHECK(dropout.is_null() || dropout == 0, "model.dropout is not 0, allowed: none",
              "tokens of a text would not be the same each time");
}

// "a b", or ["a", "b"].
std::pair<std::string, std::string> pair_of(const json& merge, size_t index) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  }
  const std::string line = merge.is_string() ? merge.get<std::string>() : "";
  const size_t space = line.find(' ');
  CADRE_CHECK(space != std::string::npos && line.find(' ', space + 1) == std::string::npos,
              fmt::format("model.merges[{}] is no pair, allowed: \"a b\" or [\"a\", \"b\"]", index));
  return {line.substr(0, space), line.substr(space + 1)};
}

}  // namespace

ByteLevelBpe::ByteLevelBpe(const json& file) : pre_tokenizer_(field(file, "", "pre_tokenizer", json::value_t::object)) {
  to_nfc_first_ = read_normalizer(file);
  const json& model = field(file, "", "model", json::value_t::object);
  check_model(model);
  read_vocabulary(model);
  read_merges(model);
  read_added_tokens(file);
  read_prompt_prefix(file.value("post_processor", json()));
}

void ByteLevelBpe::read_vocabulary(const json& model) {
  for (const auto& [spelled, value] : field(model, "model", "vocab", json::value_t::object).items()) {
    const int32_t id = token_id(value, fmt::format("model.vocab: the id of {}", quoted(spelled)));
    ids_.emplace(spelled, id);
    const auto [other, is_new] = pieces_.emplace(id, bytes_spelled(spelled).value_or(spelled));
    CADRE_CHECK(is_new, fmt::format("model.vocab: {} has the id {} of another token", quoted(spelled), id));
    vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{id} + 1);
  }
  for (int byte = 0; byte < 256; ++byte) {
    bytes_[static_cast<size_t>(byte)] = find(spell_byte(static_cast<uint8_t>(byte)));
  }
  if (const std::string unknown = text(model, "model", "unk_token", ""); !unknown.empty()) unknown_ = find(unknown);
  whole_words_first_ = flag(model, "model", "ignore_merges", false);
}

int32_t ByteLevelBpe::id_of(const std::string& spelled, size_t rule) const {
  const auto id = find(spelled);
  CADRE_CHECK(id.has_value(), fmt::format("model.merges[{}]: {} is not in model.vocab", rule, quoted(spelled)));
  return *id;
}

void ByteLevelBpe::read_merges(const json& model) {
  const json& merges = field(model, "model", "merges", json::value_t::array);
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = pair_of(merges[i], i);
    merges_.add(id_of(left, i), id_of(right, i), id_of(left + right, i));
  }
}

void ByteLevelBpe::read_added_tokens(const json& file) {
  const auto num_tokens = static_cast<int64_t>(ids_.size());
  int64_t next_added = 0;
  for (const AddedToken& listed : added_tokens_of_tokenizer_json(file)) {
    AddedToken added = listed;
    // The `tokenizers` package numbers added tokens by itself, and only warns where the file says something else.
    const auto known = find(added.content);
    const auto id = known.value_or(static_cast<int32_t>(std::max(num_tokens, next_added)));
    if (listed.id != id) renumbered_.push_back(fmt::format("{} is {}, not {}", quoted(listed.content), id, listed.id));
    added.id = id;
    CADRE_CHECK(known || !pieces_.contains(id),
                fmt::format("added_tokens: {} gets the id {} behind {} tokens, which model.vocab has too",
                            quoted(listed.content), id, num_tokens),
                "ids of model.vocab leave some out");
    if (!known) next_added = int64_t{id} + 1;
    ids_[added.content] = id;
    pieces_[id] = added.is_special ? "" : added.content;
    (added.is_normalized ? normalized_tokens_ : raw_tokens_).add(added);
    vocab_size_ = std::max<int64_t>(vocab_size_, int64_t{id} + 1);
  }
}

// The tokens that TemplateProcessing puts before a single text. A ByteLevel post-processor changes offsets only.
void ByteLevelBpe::read_prompt_prefix(const json& post_processor) {
  const std::string type = type_of(post_processor, "post_processor");
  CADRE_CHECK(
      type.empty() || type == "Sequence" || type == "ByteLevel" || type == "TemplateProcessing",
      fmt::format("post_processor = {}, allowed: ByteLevel | TemplateProcessing | Sequence of these", quoted(type)),
      kByteLevelBpeHint);
  if (type == "Sequence") {
    for (const json& part : field(post_processor, "post_processor", "processors", json::value_t::array)) {
      CADRE_CHECK(type_of(part, "post_processor") != "Sequence",
                  "post_processor: a Sequence in a Sequence, allowed: one", kByteLevelBpeHint);
      read_prompt_prefix(part);
    }
  }
  if (type != "TemplateProcessing") return;
  std::vector<int32_t> prefix;
  for (const json& part : field(post_processor, "post_processor", "single", json::value_t::array)) {
    if (!part.is_object() || !part.contains("SpecialToken")) break;
    const std::string name = text(part["SpecialToken"], "post_processor.single", "id", "");
    const auto id = find(name);
    CADRE_CHECK(id.has_value(), fmt::format("post_processor.single: there is no token {}", quoted(name)));
    prefix.push_back(*id);
  }
  set_prompt_prefix(std::move(prefix));
}

std::optional<int32_t> ByteLevelBpe::find(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? std::nullopt : std::optional(found->second);
}

std::string ByteLevelBpe::piece(int32_t token) const {
  const auto found = pieces_.find(token);
  return found == pieces_.end() ? "" : found->second;
}

std::string ByteLevelBpe::note_on(std::string_view text) const {
  std::string note = note_on_unassigned(text);
  if (renumbered_.empty()) return note;
  const std::string all = fmt::format("added tokens have other ids than their file says, as in other programs: {}",
                                      fmt::join(renumbered_, ", "));
  return note.empty() ? all : all + "; " + note;
}

std::vector<int32_t> ByteLevelBpe::tokens_of_word(std::string_view word) const {
  if (whole_words_first_) {
    std::string spelled;
    for (const char byte : word) spelled += spell_byte(static_cast<uint8_t>(byte));
    if (const auto id = find(spelled)) return {*id};
  }
  std::vector<int32_t> tokens;
  for (const char byte : word) {
    const auto value = static_cast<uint8_t>(byte);
    const auto token = bytes_[value] ? bytes_[value] : unknown_;
    CADRE_CHECK(token.has_value(), fmt::format("the tokenizer has no token for the byte {:#04x}", value),
                "its vocabulary lacks some bytes, and it names no unk_token");
    tokens.push_back(*token);
  }
  return merges_.merge(std::move(tokens));
}

// The tokens of one text. Most words of a text come again.
class ByteLevelBpe::Encoding {
 public:
  explicit Encoding(const ByteLevelBpe& tokenizer) : tokenizer_(tokenizer) {}

  void add(std::string_view text) {
    const auto take_token = [this](int32_t token) { tokens.push_back(token); };
    const auto take_words = [this](std::string_view words) {
      tokenizer_.pre_tokenizer_.each_word(words, [this](std::string_view word) { add_word(word); });
    };
    const auto take_part = [&](std::string_view part) {
      if (!tokenizer_.to_nfc_first_) return tokenizer_.normalized_tokens_.cut(part, take_words, take_token);
      const std::string normalized = to_nfc(part);
      tokenizer_.normalized_tokens_.cut(normalized, take_words, take_token);
    };
    tokenizer_.raw_tokens_.cut(text, take_part, take_token);
  }

  std::vector<int32_t> tokens;

 private:
  void add_word(std::string_view word) {
    if (word.size() > kMaxRememberedWord) return append(tokenizer_.tokens_of_word(word));
    if (known_.size() >= kMaxRemembered) known_.clear();
    const auto [known, is_new] = known_.try_emplace(std::string(word));
    if (is_new) known->second = tokenizer_.tokens_of_word(word);
    append(known->second);
  }

  void append(const std::vector<int32_t>& more) { tokens.insert(tokens.end(), more.begin(), more.end()); }

  const ByteLevelBpe& tokenizer_;
  std::unordered_map<std::string, std::vector<int32_t>> known_;
};

std::vector<int32_t> ByteLevelBpe::encode(std::string_view text) const {
  Encoding encoding(*this);
  encoding.add(text);
  return std::move(encoding.tokens);
}

}  // namespace cadre
