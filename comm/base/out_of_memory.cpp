// SPDX-License-Identifier: Apache-2.0
#include "comm/base/out_of_memory.hpp"

namespace cadre {

OutOfMemory::OutOfMemory(const std::string& text, const std::string& hint, std::source_location where)
    : Error(ErrorKind::environment, text, hint, where),
      position_(trace_recorder() != nullptr ? trace_recorder()->activity().at : whereabouts().at),
      where_(where) {}

Error OutOfMemory::with_tokens(int64_t num_tokens) const {
  return {kind(), fmt::format("{}, {} tokens: {}", position_.describe(), num_tokens, text()), hint(), where_};
}

}  // namespace cadre
