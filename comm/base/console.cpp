// SPDX-License-Identifier: Apache-2.0
#include "comm/base/console.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "comm/base/check.hpp"

namespace cadre {
// After the first failure the stream keeps its error flag, so there is one warning.
void say(std::string_view text) {
  if (std::ferror(stdout) != 0) return;
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (std::fflush(stdout) == 0 && written) return;
  const std::string line =
      fmt::format("cadre: warning: standard output cannot be written: {}; the run goes on, lines are dropped\n",
                  std::strerror(errno));
  static_cast<void>(std::fputs(line.c_str(), stderr));
}

void require_stdout() {
  errno = 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (flushed && std::ferror(stdout) == 0) return;
  throw Error(ErrorKind::environment,
              fmt::format("standard output cannot be written{}",
                          errno == 0 ? std::string() : fmt::format(": {}", std::strerror(errno))),
              "did the reader of a pipe end, or is the disk full?");
}

}  // namespace cadre
