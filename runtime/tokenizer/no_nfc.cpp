// SPDX-License-Identifier: Apache-2.0
// In the place of nfc.cpp, where ICU was not found.
#include "comm/base/check.hpp"
#include "runtime/tokenizer/nfc.hpp"

namespace cadre {

bool has_nfc() { return false; }

std::string to_nfc(std::string_view /*text*/) {
  throw Error(ErrorKind::environment, "normalizer = \"NFC\" needs ICU, which is not built in",
              "apt install libicu-dev, then build Cadre again");
}

}  // namespace cadre
