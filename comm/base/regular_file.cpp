// SPDX-License-Identifier: Apache-2.0
#include "comm/base/regular_file.hpp"

#include <system_error>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

std::string kind_of(fs::file_type type) {
  switch (type) {
    case fs::file_type::not_found: return "there is no such file";
    case fs::file_type::directory: return "it is a folder, not a regular file";
    case fs::file_type::fifo: return "it is a FIFO, not a regular file";
    case fs::file_type::socket: return "it is a socket, not a regular file";
    case fs::file_type::character:
    case fs::file_type::block: return "it is a device, not a regular file";
    default: return "it is not a regular file";
  }
}

}  // namespace

void expect_regular_file(const fs::path& path, const std::string& hint) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_regular_file(status)) return;
  const bool known = !error || status.type() == fs::file_type::not_found;
  throw Error(
      ErrorKind::input,
      fmt::format("{}: cannot read this file: {}", path.string(), known ? kind_of(status.type()) : error.message()),
      hint);
}

}  // namespace cadre
