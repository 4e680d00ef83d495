// SPDX-License-Identifier: Apache-2.0
#include "comm/base/check.hpp"

#include <string_view>
#include <utility>

namespace cadre {

Error::Error(ErrorKind kind, std::string text, std::string hint, std::source_location where)
    : kind_(kind), text_(std::move(text)), hint_(std::move(hint)) {
  full_ = text_;
  if (!hint_.empty()) full_ += " (hint: " + hint_ + ")";
  if (kind_ == ErrorKind::internal) {
    full_ += fmt::format(" [{}:{}]", std::string_view(where.file_name()), where.line());
  }
}

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::input: return 2;
    case ErrorKind::environment: return 3;
    case ErrorKind::timeout: return 4;
    case ErrorKind::numerics: return 5;
    case ErrorKind::internal: return 70;
  }
  return 70;
}

}  // namespace cadre
