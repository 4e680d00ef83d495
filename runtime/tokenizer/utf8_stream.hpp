// SPDX-License-Identifier: Apache-2.0
// Bytes that come in pieces, let through in whole characters of UTF-8, as a terminal wants them: a token may end inside
// a character.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

class Utf8Stream {
 public:
  // What can be shown now. Bytes that belong to no character pass as they are, so that what all calls return is, one
  // after the other, what was put in.
  std::string put(std::string_view bytes);

  // What was held back, at the end of the text.
  std::string finish();

 private:
  std::string held_;  // the first bytes of a character, 3 at most
};

}  // namespace cadre
