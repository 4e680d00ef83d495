// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/documents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDocumentsHint = "data.path is a text file, a folder of text files, or an llm.c token file";

// Appends; the file may be changing, so its size is not asked for.
void read_bytes(const fs::path& path, std::string& bytes) {
  std::ifstream file(path, std::ios::binary);
  std::array<char, size_t{1} << 16> part;
  while (file.read(part.data(), part.size()) || file.gcount() > 0) {
    bytes.append(part.data(), static_cast<size_t>(file.gcount()));
  }
  CADRE_CHECK(file.eof() && !file.bad(), fmt::format("{}: cannot read this file", path.string()),
              "every rank reads the data: check that it is there on every host, and its permissions");
}

bool is_binary(std::string_view bytes) { return bytes.find('\0') != std::string_view::npos; }

Documents read_folder(const fs::path& folder, std::string_view separator) {
  FileList list = list_files(folder);
  Documents documents;
  documents.left_out = std::move(list.left_out);
  for (const fs::path& path : list.files) {
    const size_t end = documents.text.size();
    if (documents.size() > 0) documents.text += separator;
    const size_t begin = documents.text.size();
    read_bytes(path, documents.text);
    const std::string_view document = std::string_view(documents.text).substr(begin);
    if (!document.empty() && !is_binary(document)) {
      documents.begin.push_back(begin);
      continue;
    }
    documents.left_out.push_back({path.lexically_relative(folder).string(),
                                  document.empty() ? "empty" : "holds a zero byte, so it is not text"});
    documents.text.resize(end);
  }
  std::ranges::sort(documents.left_out, {}, &LeftOut::path);
  return documents;
}

Documents read_single(const fs::path& path) {
  Documents documents;
  read_bytes(path, documents.text);
  CADRE_CHECK(!is_binary(documents.text), fmt::format("{}: holds a zero byte, so it is not text", path.string()),
              kDocumentsHint);
  if (!documents.text.empty()) documents.begin.push_back(0);
  return documents;
}

}  // namespace

std::string_view Documents::document(size_t index) const {
  const size_t end = index + 1 < size() ? begin[index + 1] - separator_bytes : text.size();
  return std::string_view(text).substr(begin[index], end - begin[index]);
}

Documents read_documents(const std::string& path, std::string_view separator) {
  check_file_or_folder(path, "data.path");
  Documents documents = fs::is_directory(path) ? read_folder(path, separator) : read_single(path);
  documents.separator_bytes = separator.size();
  std::string named;
  for (const LeftOut& file : documents.left_out) named += fmt::format("; {}: {}", file.path, file.why);
  CADRE_CHECK(documents.size() > 0, fmt::format("data.path = {} holds no text{}", path, named), kDocumentsHint);
  return documents;
}

}  // namespace cadre
