// SPDX-License-Identifier: Apache-2.0
#include "comm/base/help_text.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace cadre {

std::string help_entry(std::string_view name, std::string_view help) {
  constexpr size_t kNameWidth = 32;
  constexpr size_t kHelpWidth = 100 - kNameWidth;
  std::string text = fmt::format("  {:<{}}", name, kNameWidth - 2);
  if (name.size() + 3 > kNameWidth) text += fmt::format("\n{:{}}", "", kNameWidth);
  for (bool is_first = true; !help.empty(); is_first = false) {
    size_t end = help.size();
    if (end > kHelpWidth) {
      const size_t blank = help.rfind(' ', kHelpWidth);
      end = blank == std::string_view::npos || blank == 0 ? std::min(help.find(' '), help.size()) : blank;
    }
    if (!is_first) text += fmt::format("\n{:{}}", "", kNameWidth);
    text += help.substr(0, end);
    help.remove_prefix(std::min(help.find_first_not_of(' ', end), help.size()));
  }
  return text + '\n';
}

}  // namespace cadre
