// SPDX-License-Identifier: Apache-2.0
#include "comm/base/error_list.hpp"

#include <string>

namespace cadre {

void ErrorList::raise() const {
  if (errors_.empty()) return;
  if (errors_.size() == 1) throw errors_.front();
  std::string all;
  for (const Error& error : errors_) {
    all += all.empty() ? "" : kNextError;
    all += &error == &errors_.back() ? error.text() : std::string(error.what());
  }
  throw Error(ErrorKind::input, all, errors_.back().hint());
}

}  // namespace cadre
