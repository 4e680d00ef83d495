// SPDX-License-Identifier: Apache-2.0
// Text files and JSON Lines to a token file (indexed_file.hpp), by several threads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/data/documents.hpp"
#include "runtime/data/indexed_file.hpp"
#include "runtime/tokenizer/tokenizer.hpp"

namespace cadre {

struct TokenizeOptions {
  std::vector<std::string> paths;  // files, or folders of them
  std::string out;                 // prefix
  std::string text_field = "text";
  int threads = 1;
  std::optional<int32_t> end_of_text = {};  // appended to each document
};

struct TokenizeSummary {
  IndexedFiles files;
  int64_t documents = 0;
  int64_t empty = 0;     // lines and files without text, left out
  int64_t bytes = 0;     // of the texts
  int64_t tokens = 0;    // with those that end documents
  int64_t id_bytes = 0;  // of each in the file
  std::vector<LeftOut> left_out;
  double seconds = 0.0;
};

// A text file is a document, and so is the text of a line of JSON Lines (is_json_lines). Documents keep the order of `paths`; the
// files of a folder are ordered by path. Two documents a thread are in memory at once, or some of a megabyte together. Throws on
// anything that cannot be read, and leaves no file then. Folders: what is no text is left out and named.
TokenizeSummary tokenize_files(const TokenizeOptions& options, const Tokenizer& tokenizer);

}  // namespace cadre
