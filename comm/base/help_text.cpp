// SPDX-License-Identifier: Apache-2.0
#include "comm/base/help_text.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace cadre {

std::string help_entry(std::string_view name, std::string_view help, size_t name_width) {
  const size_t help_width = 100 - name_width;
  std::string text = fmt::format("  {:<{}}", name, name_width - 2);
  if (name.size() + 3 > name_width) text += fmt::format("\n{:{}}", "", name_width);
  for (bool is_first = true; !help.empty(); is_first = false) {
    size_t end = help.size();
    if (end > help_width) {
      const size_t blank = help.rfind(' ', help_width);
      end = blank == std::string_view::npos || blank == 0 ? std::min(help.find(' '), help.size()) : blank;
    }
    if (!is_first) text += fmt::format("\n{:{}}", "", name_width);
    text += help.substr(0, end);
    help.remove_prefix(std::min(help.find_first_not_of(' ', end), help.size()));
  }
  return text + '\n';
}

}  // namespace cadre
