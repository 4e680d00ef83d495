// SPDX-License-Identifier: Apache-2.0
#include "runtime/data/text.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kHint = "data.path is a text file, a folder of text files, or an llm.c token file";

std::string read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes;
  if (file) bytes.assign(std::istreambuf_iterator<char>(file), {});
  CADRE_CHECK(file && !file.bad(), fmt::format("{}: cannot read this file", path.string()),
              "every rank reads the data: check that it is there on every host, and its permissions");
  return bytes;
}

bool is_binary(const std::string& bytes) { return bytes.find('\0') != std::string::npos; }

std::vector<fs::path> files_below(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    const bool skipped = it->is_symlink() || it->path().extension() == ".dat";
    if (!skipped && it->is_regular_file()) files.push_back(it->path());
  }
  CADRE_CHECK(!error, fmt::format("{}: cannot list this folder: {}", folder.string(), error.message()), kHint);
  std::ranges::sort(files, {}, [](const fs::path& path) { return path.native(); });
  return files;
}

std::string read_folder(const fs::path& folder) {
  std::string text;
  for (const fs::path& path : files_below(folder)) {
    const std::string document = read_bytes(path);
    if (document.empty() || is_binary(document)) continue;
    if (!text.empty()) text += '\n';
    text += document;
  }
  return text;
}

std::string read_single(const std::string& path) {
  std::string text = read_bytes(path);
  CADRE_CHECK(!is_binary(text), fmt::format("{}: holds a zero byte, so it is not text", path), kHint);
  return text;
}

}  // namespace

std::string read_text(const std::string& path) {
  CADRE_CHECK(fs::exists(path), fmt::format("data.path = {} does not exist", path), kHint);
  std::string text = fs::is_directory(path) ? read_folder(path) : read_single(path);
  CADRE_CHECK(!text.empty(), fmt::format("data.path = {} holds no text", path), kHint);
  return text;
}

}  // namespace cadre
