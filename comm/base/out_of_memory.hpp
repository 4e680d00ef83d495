// SPDX-License-Identifier: Apache-2.0
// Memory that could not be had, and what the thread was at when it asked for it.
#pragma once

#include <string>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"

namespace cadre {

// ErrorKind::environment.
class OutOfMemory final : public Error {
 public:
  explicit OutOfMemory(const std::string& text, const std::string& hint,
                       std::source_location where = std::source_location::current());

  const Position& position() const { return position_; }
  // The same for people: with step, layer and phase, and how many tokens the micro-batch there has.
  Error with_tokens(int64_t num_tokens) const;

 private:
  Position position_;
  std::source_location where_;
};

}  // namespace cadre
