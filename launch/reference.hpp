// SPDX-License-Identifier: Apache-2.0
// Man pages and shell completion, made of the tables that --help is made of.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launch/command.hpp"

namespace cadre {

// `cadre reference DIR`. `commands` gives all commands of the program.
Command reference_command(const std::function<std::vector<Command>()>& commands);

// man1/cadre.1 and a page a command, bash-completion/completions/cadre, zsh/vendor-completions/_cadre: path below share/,
// and text.
std::map<std::string, std::string> reference_files(const std::vector<Command>& commands);

}  // namespace cadre
