// SPDX-License-Identifier: Apache-2.0
// Memory that a host or a device does not have.
#pragma once

#include <string>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"

namespace cadre {

// ErrorKind::environment.
class OutOfMemory final : public Error {
 public:
  explicit OutOfMemory(const std::string& text, const std::string& hint,
                       std::source_location where = std::source_location::current())
      : Error(ErrorKind::environment, text, hint, where), where_(where) {}

  // The same, with what the rank was at and how many tokens the micro-batch there has.
  Error at(const Position& position, int64_t num_tokens) const {
    return {kind(), fmt::format("{}, {} tokens: {}", position.describe(), num_tokens, text()), hint(), where_};
  }

 private:
  std::source_location where_;
};

}  // namespace cadre
