// SPDX-License-Identifier: Apache-2.0
// Standard output of the program. SIGPIPE is ignored (main.cpp), so that a reader that goes away shows as an error of a
// write.
#pragma once

#include <string_view>

namespace cadre {

// Prints to stdout and flushes. For text beside the work: what cannot be written (closed pipe, full disk) is dropped, which
// is said once, on stderr.
void say(std::string_view text);

// Throws ErrorKind::environment when something printed to stdout was not written: for commands whose result is their
// output.
void require_stdout();

}  // namespace cadre
