// SPDX-License-Identifier: Apache-2.0
#include "launch/run_paths.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>

#include "comm/base/error_list.hpp"
#include "runtime/config/data_mixture.hpp"
#include "runtime/data/indexed_file.hpp"
#include "runtime/tokenizer/bytes.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

void check_readable(const std::string& key, const std::string& path, const char* hint) {
  if (::access(path.c_str(), R_OK) == 0) return;
  throw Error(ErrorKind::input, fmt::format("{} = {}: {}", key, path, std::strerror(errno)), hint);
}

// Also the prefix of the two files of Megatron-LM.
void check_data(const std::string& key, const std::string& path, const char* hint) {
  const auto files = find_indexed_files(path);
  check_readable(key, files ? files->ids : path, hint);
}

// The folder itself, or the nearest one above it that is there.
fs::path nearest_above(fs::path path) {
  std::error_code error;
  while (!path.empty() && !fs::exists(path, error)) {
    if (!path.has_parent_path() || path == path.parent_path()) return ".";
    path = path.parent_path();
  }
  return path.empty() ? fs::path(".") : path;
}

void check_out(const std::string& out) {
  const fs::path above = nearest_above(out);
  const char* hint = "name a folder that can be written with out=PATH";
  std::error_code error;
  CADRE_CHECK(fs::is_directory(above, error), fmt::format("out = {}: {} is not a folder", out, above.string()), hint);
  CADRE_CHECK(::access(above.c_str(), W_OK | X_OK) == 0,
              fmt::format("out = {}: {} cannot be written: {}", out, above.string(), std::strerror(errno)), hint);
}

}  // namespace

void check_paths(const RunConfig& config) {
  ErrorList errors;
  const char* key = config.data.mixture.empty() ? "data.path" : "data.mixture";
  for (const MixtureEntry& entry : mixture_entries(config.data)) {
    errors.collect([&] { check_data(key, entry.path, "a text file, a folder of them, or an llm.c token file"); });
  }
  if (!config.data.validation.empty()) {
    errors.collect([&] {
      check_data("data.validation", config.data.validation, "held-out data of the same format as data.path");
    });
  }
  if (config.data.tokenizer != kByteTokenizer) {
    errors.collect([&] {
      check_readable("data.tokenizer", config.data.tokenizer,
                     "bytes, a tokenizer.json, a tokenizer.model or a folder with one");
    });
  }
  errors.collect([&] { check_out(config.out); });
  errors.raise();
}

}  // namespace cadre
