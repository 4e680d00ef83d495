// SPDX-License-Identifier: Apache-2.0
// cadre tokenize: text to a token file that training reads at once, on any ranks.
#include "runtime/data/tokenize.hpp"

#include <fmt/format.h>

#include <charconv>
#include <filesystem>
#include <memory>
#include <thread>

#include "comm/base/check.hpp"
#include "launch/command.hpp"
#include "runtime/data/dataset.hpp"

namespace cadre {
namespace {

struct TokenizeArguments {
  std::vector<std::string> paths;
  std::string tokenizer;
  std::string out;
  std::string text_field = "text";
  std::string end_of_text = "auto";
  int64_t threads = 0;
};

std::optional<int32_t> end_of_text_of(const std::string& wanted, const Tokenizer& tokenizer) {
  if (wanted == "auto") return tokenizer.end_of_text();
  if (wanted == "none") return std::nullopt;
  int32_t token = -1;
  const char* end = wanted.data() + wanted.size();
  const auto [rest, error] = std::from_chars(wanted.data(), end, token);
  CADRE_CHECK(error == std::errc() && rest == end && token >= 0,
              fmt::format("--end-of-text = {}, allowed: auto | none | a token id", wanted),
              "auto: the end-of-text token of the tokenizer, if it has one");
  return token;
}

int num_threads(int64_t wanted) {
  return wanted > 0 ? static_cast<int>(wanted) : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

void run_tokenize(const TokenizeArguments& arguments, const Job& job) {
  if (job.rank() != 0) return;
  CADRE_CHECK(!arguments.tokenizer.empty(), "--tokenizer is missing",
              "a tokenizer.json, a tokenizer.model, a folder with one, or bytes");
  CADRE_CHECK(!arguments.out.empty(), "--out is missing",
              "name the prefix of the two new files PREFIX.bin and PREFIX.idx");
  const auto tokenizer = open_tokenizer(arguments.tokenizer);
  const TokenizeOptions options = {.paths = arguments.paths,
                                   .out = arguments.out,
                                   .text_field = arguments.text_field,
                                   .threads = num_threads(arguments.threads),
                                   .end_of_text = end_of_text_of(arguments.end_of_text, *tokenizer)};
  const TokenizeSummary summary = tokenize_files(options, *tokenizer);
  const auto tokens = static_cast<double>(summary.tokens);
  fmt::print("{}: {} documents, {} bytes, {} tokens of {} bytes, {}\n", summary.files.ids, summary.documents,
             summary.bytes, summary.tokens, summary.id_bytes,
             options.end_of_text ? fmt::format("token {} behind each document", *options.end_of_text)
                                 : "no token between documents");
  if (!summary.left_out.empty() || summary.empty > 0) {
    fmt::print("left out: {} empty texts{}{}\n", summary.empty, summary.left_out.empty() ? "" : ", ",
               describe(summary.left_out));
  }
  fmt::print("{:.2f} s on {} threads: {:.3g} tokens/s, {:.3g} a thread\n", summary.seconds, options.threads,
             tokens / summary.seconds, tokens / summary.seconds / options.threads);
}

}  // namespace

Command tokenize_command() {
  const auto options = std::make_shared<TokenizeArguments>();
  return {
      .name = "tokenize",
      .summary = "writes the tokens of texts to a file that train reads at once (Megatron-LM .bin, .idx)",
      .options = {{"tokenizer", &options->tokenizer, any(),
                   "bytes, or a tokenizer.json, a tokenizer.model or a folder with one"},
                  {"out", &options->out, any(), "prefix of the new files"},
                  {"text-field", &options->text_field, any(), "field of JSON Lines that holds the text"},
                  {"end-of-text", &options->end_of_text, any(),
                   "token behind each document: auto (the tokenizer's, if it has one), none, or an id"},
                  {"threads", &options->threads, between(0, 4096), "threads; 0: as many as the machine runs at once"}},
      .files = ListOption{"FILE", &options->paths,
                          "a text file, JSON Lines (*.jsonl, *.ndjson, *.json) or a folder of them"},
      .run = [options](const Job& job) { run_tokenize(*options, job); }};
}

}  // namespace cadre
