// SPDX-License-Identifier: Apache-2.0
// From the words of the command line to a command that runs.
#pragma once

#include <string>
#include <vector>

#include "launch/command.hpp"

namespace cadre {

// Runs the command that `words` (without the name of the program) ask for, or prints help or version, on rank 0. Every
// rank calls it. Throws on words that no command takes.
void run_command_line(const std::vector<Command>& commands, const std::vector<std::string>& words, const Job& job);

}  // namespace cadre
