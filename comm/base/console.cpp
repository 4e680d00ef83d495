// SPDX-License-Identifier: Apache-2.0
#include "comm/base/console.hpp"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <string>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

void warn_once(int error) {
  static std::once_flag warned;
  std::call_once(warned, [&] {
    const std::string line =
        fmt::format("cadre: warning: standard output cannot be written: {}; the run goes on, lines are dropped\n",
                    std::strerror(error));
    static_cast<void>(std::fputs(line.c_str(), stderr));
  });
}

}  // namespace

void say(std::string_view text) {
  errno = 0;
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (std::fflush(stdout) != 0 || !written) warn_once(errno);
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
