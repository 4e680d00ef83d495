// SPDX-License-Identifier: Apache-2.0
// Standard output of the program. SIGPIPE is ignored (main.cpp), so that a reader that goes away shows as an error of a
// write.
#pragma once

#include <string>
#include <string_view>

namespace cadre {

// Prints to stdout and flushes; on a terminal with highlight(). For text beside the work: what cannot be written (closed
// pipe, full disk) is dropped, which is said once, on stderr.
void say(std::string_view text);

// Throws ErrorKind::environment when something printed to stdout was not written: for commands whose result is their
// output.
void require_stdout();

// Whether text written to this descriptor of the process (1 or 2) reaches a terminal. A rank of mpirun on the host of
// mpirun has the terminal of mpirun: its own stdout is a pseudo-terminal of mpirun in every case.
bool reaches_terminal(int descriptor);

// The descriptor to redraw a line on: stderr, or stdout where mpirun forwards both, so that their order is kept; -1
// without a terminal.
int terminal_descriptor();

// Colours the first word of lines that begin with "warning:", "note:", "ALARM:" or "step N".
std::string highlight(std::string_view text);

// The layout of --help.

// An entry of --help, at most 100 columns wide: `name` at the left, `help` from column `name_width` on, beside the name or,
// where that is long, below it, wrapped at blanks.
std::string help_entry(std::string_view name, std::string_view help, size_t name_width = 32);

}  // namespace cadre
