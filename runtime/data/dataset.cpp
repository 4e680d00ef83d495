// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/dataset.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/chat/chat.hpp"
#include "runtime/config/parsed_keys.hpp"
#include "runtime/data/conversations.hpp"
#include "runtime/data/documents.hpp"
#include "runtime/data/indexed_file.hpp"
#include "runtime/data/token_source.hpp"
#include "runtime/tokenizer/bytes.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {
namespace {

constexpr size_t kNamed = 8;  // of files that are left out for one reason

void check_part(const char* part, const TokenSource& tokens, const DataConfig& config, const DataSummary& summary) {
  CADRE_CHECK(tokens.num_tokens() > config.sequence_length,
              fmt::format("{} = {} has {} tokens for {}, allowed: at least data.sequence_length + 1 = {} (read {})",
                          config.mixture.empty() ? "data.path" : "data.mixture", tokens.name(), tokens.num_tokens(),
                          part, config.sequence_length + 1, describe(summary)),
              fmt::format("give more data, shorter sequences, or another data.validation_fraction (now {})",
                          config.validation_fraction));
}

// Without a target there is no loss.
void check_targets(const PackingSummary& summary, const std::string& path, int64_t sequence_length) {
  CADRE_CHECK(summary.conversations == 0 || summary.counted_tokens > 0,
              fmt::format("{}: no token has a loss ({})", path, describe(summary)),
              summary.left_out > 0
                  ? fmt::format("answers begin behind data.sequence_length = {} tokens: raise it", sequence_length)
                  : "all answers have the weight 0");
}

void check_vocabulary(const Tokenizer& tokenizer, const std::string& path, int64_t vocab_size) {
  CADRE_CHECK(vocab_size >= tokenizer.vocab_size(),
              fmt::format("model.vocab_size = {}, allowed: integer >= {} with data.tokenizer = \"{}\"", vocab_size,
                          tokenizer.vocab_size(), path),
              path == kByteTokenizer ? "every byte is a token" : "each of its tokens needs a row of the embedding");
}

// A byte is its own id.
TokenSource tokens_of_bytes(const std::string& name, std::string text, int64_t vocab_size) {
  auto owner = std::make_shared<const std::string>(std::move(text));
  const auto* ids = reinterpret_cast<const uint8_t*>(owner->data());
  const auto num_tokens = static_cast<int64_t>(owner->size());
  return {name, std::move(owner), ids, num_tokens, vocab_size};
}

TokenSource tokens_of_ids(const std::string& name, std::vector<uint32_t> tokens, int64_t vocab_size) {
  auto owner = std::make_shared<const std::vector<uint32_t>>(std::move(tokens));
  const uint32_t* ids = owner->data();
  const auto num_tokens = static_cast<int64_t>(owner->size());
  return {name, std::move(owner), ids, num_tokens, vocab_size};
}

// Each document for itself, so that no token reaches over its end.
std::vector<uint32_t> encode_all(const Documents& documents, const Tokenizer& tokenizer, int64_t end_of_text) {
  std::vector<uint32_t> tokens;
  for (size_t i = 0; i < documents.size(); ++i) {
    if (i > 0) tokens.push_back(static_cast<uint32_t>(end_of_text));
    const std::vector<int32_t> ids = tokenizer.encode(documents.document(i));
    tokens.insert(tokens.end(), ids.begin(), ids.end());
  }
  return tokens;
}

TokenSource tokens_of_documents(const std::string& name, Documents documents, const Tokenizer& tokenizer,
                                bool are_bytes, int64_t vocab_size, int64_t end_of_text) {
  const bool is_separated = documents.separator_bytes > 0 || documents.size() == 1;
  if (are_bytes && is_separated) return tokens_of_bytes(name, std::move(documents.text), vocab_size);
  if (is_separated) {
    const std::vector<int32_t> ids = tokenizer.encode(documents.text);
    return tokens_of_ids(name, {ids.begin(), ids.end()}, vocab_size);
  }
  return tokens_of_ids(name, encode_all(documents, tokenizer, end_of_text), vocab_size);
}

// What stands between documents in the text itself; nothing where a token does that has no text.
std::string separator_of(int64_t end_of_text, bool are_bytes) {
  if (end_of_text < 0) return "\n";
  return are_bytes && end_of_text < kByteVocabSize ? std::string(1, static_cast<char>(end_of_text)) : "";
}

OpenedTokens open_ids(const std::string& path, int64_t vocab_size) {
  const std::optional<IndexedFiles> indexed = find_indexed_files(path);
  TokenSource tokens = indexed ? open_indexed_files(*indexed, vocab_size) : open_token_file(path, vocab_size);
  DataSummary summary = {.path = path, .files = 0, .bytes = 0, .tokens = tokens.num_tokens()};
  for (const std::string& file : indexed ? std::vector{indexed->ids, indexed->index} : std::vector{path}) {
    ++summary.files;
    summary.bytes += static_cast<int64_t>(std::filesystem::file_size(file));
  }
  return {std::move(tokens), summary};
}

}  // namespace

bool holds_tokens(const std::string& path) { return find_indexed_files(path) || is_token_file(path); }

std::string describe(const std::vector<LeftOut>& left_out) {
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const LeftOut& file : left_out) by_reason[file.why].push_back(file.path);
  std::string text;
  for (auto& [why, files] : by_reason) {
    const size_t more = files.size() - std::min(files.size(), kNamed);
    files.resize(files.size() - more);
    text += fmt::format("{}{}{} ({})", text.empty() ? "" : ", ", fmt::join(files, ", "),
                        more == 0 ? "" : fmt::format(" and {} more", more), why);
  }
  return text;
}

std::string describe(const DataSummary& summary) {
  std::string text = fmt::format("{}: {} file{}, {} bytes, {} tokens", summary.path, summary.files,
                                 summary.files == 1 ? "" : "s", summary.bytes, summary.tokens);
  if (!summary.between_documents.empty()) text += fmt::format(", {} between documents", summary.between_documents);
  if (!summary.left_out.empty()) text += "; left out: " + describe(summary.left_out);
  if (!summary.note.empty()) text += "; " + summary.note;
  return text;
}

OpenedTokens open_tokens(const std::string& path, const std::string& tokenizer_path, int64_t vocab_size,
                         int64_t end_of_text, const std::string& text_field) {
  const bool is_ready = holds_tokens(path);
  if (!is_ready) check_file_or_folder(path, "data.path");
  const bool are_bytes = tokenizer_path == kByteTokenizer;
  if (is_ready && are_bytes) return open_ids(path, vocab_size);
  const auto tokenizer = open_tokenizer(tokenizer_path);
  check_vocabulary(*tokenizer, tokenizer_path, vocab_size);
  if (is_ready) return open_ids(path, vocab_size);
  const std::string separator = separator_of(end_of_text, are_bytes);
  Documents documents =
      text_field.empty() ? read_documents(path, separator) : read_json_lines(path, text_field, separator);
  DataSummary summary = {.path = path,
                         .files = text_field.empty() ? static_cast<int64_t>(documents.size()) : 1,
                         .bytes = static_cast<int64_t>(documents.num_bytes()),
                         .left_out = std::move(documents.left_out)};
  if (documents.size() > 1) {
    summary.between_documents = end_of_text < 0 ? "a newline" : fmt::format("end-of-text token {}", end_of_text);
  }
  summary.note = tokenizer->note_on(documents.text);
  TokenSource tokens = tokens_of_documents(path, std::move(documents), *tokenizer, are_bytes, vocab_size, end_of_text);
  summary.tokens = tokens.num_tokens();
  return {std::move(tokens), std::move(summary)};
}

namespace {

// The token that ends a document, where documents are told apart.
int32_t document_end_of(const DataConfig& config, const ModelConfig& model) {
  if (!config.mask_documents) return -1;
  CADRE_CHECK(
      model.eos_token_id >= 0,
      fmt::format("data.mask_documents = true with model.eos_token_id = {}, allowed: false", model.eos_token_id),
      "documents end with an end-of-text token: set model.eos_token_id, or name a tokenizer that has one");
  return static_cast<int32_t>(model.eos_token_id);
}

// Opens the data of one format: data.format.
class DataOpener {
 public:
  DataOpener(const DataConfig& config, const ModelConfig& model)
      : config_(config), model_(model), document_end_(document_end_of(config, model)) {
    if (config.format == "conversations") {
      chat_.emplace(open_chat(config.tokenizer, config.chat_format, model, "data.chat_format"));
      check_vocabulary(*open_tokenizer(config.tokenizer), config.tokenizer, model.vocab_size);
    }
  }

  // Appends both parts of an entry; the last `fraction` of it is for validation.
  void add(const MixtureEntry& entry, double fraction, Dataset& data) const {
    chat_ ? add_conversations(entry, fraction, data) : add_text(entry, fraction, data);
    data.train.back().task = data.validation.back().task = entry.task;
    data.train.back().weight = data.validation.back().weight = entry.weight;
    check_part("training", data.train.back().tokens, config_, data.summaries.back());
    if (fraction > 0) check_part("validation", data.validation.back().tokens, config_, data.summaries.back());
  }

 private:
  void add_text(const MixtureEntry& entry, double fraction, Dataset& data) const {
    const std::optional<IndexedFiles> indexed = find_indexed_files(entry.path);
    if (indexed && document_end_ >= 0) check_documents_end_with(*indexed, document_end_, model_.vocab_size);
    auto [all, summary] = open_tokens(entry.path, config_.tokenizer, model_.vocab_size, model_.eos_token_id,
                                      config_.format == "json_lines" ? config_.text_field : "");
    const auto num_held_out = static_cast<int64_t>(fraction * static_cast<double>(all.num_tokens()));
    const int64_t num_train = all.num_tokens() - num_held_out;
    data.train.push_back({.tokens = all.slice(0, num_train), .document_end = document_end_});
    data.validation.push_back({.tokens = all.slice(num_train, num_held_out), .document_end = document_end_});
    data.summaries.push_back(std::move(summary));
  }

  void add_conversations(const MixtureEntry& entry, double fraction, Dataset& data) const {
    const std::vector<Conversation> all = read_conversations(entry.path, /*need_answers=*/true);
    const auto num_held_out = static_cast<size_t>(fraction * static_cast<double>(all.size()));
    const auto packed = [&](std::span<const Conversation> some) {
      PackedConversations part =
          pack_conversations(entry.path, some, *chat_, config_.sequence_length, model_.vocab_size);
      check_targets(part.summary, entry.path, config_.sequence_length);
      return part;
    };
    PackedConversations train = packed(std::span(all).first(all.size() - num_held_out));
    PackedConversations held_out = packed(std::span(all).last(num_held_out));
    DataSummary summary = {.path = entry.path,
                           .files = 1,
                           .bytes = static_cast<int64_t>(std::filesystem::file_size(entry.path)),
                           .tokens = train.summary.tokens + held_out.summary.tokens,
                           .note = fmt::format("{}: {}", name_of(chat_->format()), describe(train.summary))};
    if (num_held_out > 0) summary.note += "; held out: " + describe(held_out.summary);
    data.train.push_back({.tokens = std::move(train.tokens), .marks = std::move(train.marks)});
    data.validation.push_back({.tokens = std::move(held_out.tokens), .marks = std::move(held_out.marks)});
    data.summaries.push_back(std::move(summary));
  }

  const DataConfig& config_;
  const ModelConfig& model_;
  int32_t document_end_;
  std::optional<Chat> chat_;
};

}  // namespace

bool holds_out_data(const DataConfig& config) { return !config.validation.empty() || config.validation_fraction > 0.0; }

OpenedPart open_validation(const DataConfig& config, const ModelConfig& model) {
  Dataset data;
  DataOpener(config, model).add({.path = config.validation}, 0.0, data);
  return {std::move(data.train.front()), std::move(data.summaries.front())};
}

Dataset open_dataset(const DataConfig& config, const ModelConfig& model) {
  Dataset data;
  const DataOpener opener(config, model);
  const bool has_own = !config.validation.empty();
  for (const MixtureEntry& entry : mixture_entries(config)) {
    opener.add(entry, has_own ? 0.0 : config.validation_fraction, data);
  }
  if (has_own) {
    OpenedPart opened = open_validation(config, model);
    data.validation = {std::move(opened.part)};
    data.validation_summary = std::move(opened.summary);
  }
  data.validation = each_window_once(std::move(data.validation), config.sequence_length);
  return data;
}

size_t held_bytes(const DataConfig& config) {
  std::vector<std::string> paths = {config.validation};
  for (const MixtureEntry& entry : mixture_entries(config)) paths.push_back(entry.path);
  size_t bytes = 0;
  std::error_code error;
  for (const std::string& path : paths) {
    if (path.empty() || holds_tokens(path)) continue;
    const bool is_folder = std::filesystem::is_directory(path, error);
    for (const auto& file : is_folder ? list_files(path).files : std::vector<std::filesystem::path>{path}) {
      const uintmax_t size = std::filesystem::file_size(file, error);
      if (!error) bytes += size;
    }
  }
  return bytes;
}

RunConfig with_end_of_text(RunConfig config) {
  if (config.model.eos_token_id >= 0) return config;
  if (config.data.tokenizer == kByteTokenizer) {
    if (config.data.format == "conversations") config.model.eos_token_id = 0;
    return config;
  }
  const std::optional<int32_t> token = open_tokenizer(config.data.tokenizer)->end_of_text();
  if (token && *token < config.model.vocab_size) config.model.eos_token_id = *token;
  return config;
}

int32_t TaskLabeller::Sequence::add(int32_t token) {
  const std::optional<TaskType> task = reader_.read(labeller_->tokenizer_->piece(token));
  if (token == labeller_->end_of_text_) reader_.restart();
  return task ? static_cast<int32_t>(*task) : kNoTask;
}

std::vector<int32_t> TaskLabeller::label(std::span<const int32_t> tokens, int64_t sequence_length) const {
  const auto length = static_cast<size_t>(sequence_length);
  CADRE_ASSERT(length > 0 && tokens.size() % length == 0);
  std::vector<int32_t> labels;
  labels.reserve(tokens.size());
  for (size_t first = 0; first < tokens.size(); first += length) {
    Sequence sequence(*this);
    for (const int32_t token : tokens.subspan(first, length)) labels.push_back(sequence.add(token));
  }
  return labels;
}

std::optional<TaskLabeller> make_task_labeller(const RunConfig& config) {
  if (!config.task.recognise) return std::nullopt;
  const bool are_bytes = config.data.tokenizer == kByteTokenizer;
  CADRE_CHECK(!are_bytes || !holds_tokens(config.data.path),
              fmt::format("task.recognise = true with data.path = {}, a token file, and data.tokenizer = \"bytes\"",
                          config.data.path),
              "keywords are found in text: name the tokenizer that made the tokens");
  return TaskLabeller(task_options(config.task), open_tokenizer(config.data.tokenizer), config.model.eos_token_id);
}

}  // namespace cadre
