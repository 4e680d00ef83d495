// SPDX-License-Identifier: Apache-2.0
// Completion of the command line by the shells: commands, options, keys of a run file, values with a few choices.
#pragma once

#include <string>
#include <vector>

#include "launch/command.hpp"

namespace cadre {

std::string bash_completion(const std::vector<Command>& commands);
std::string zsh_completion(const std::vector<Command>& commands);

}  // namespace cadre
