// SPDX-License-Identifier: Apache-2.0
// Input files must be files: reading a FIFO would wait for ever, a device would never end.
#pragma once

#include <filesystem>
#include <string>

namespace cadre {

// Throws ErrorKind::input, and says what lies there, unless `path` leads to a regular file.
void expect_regular_file(const std::filesystem::path& path, const std::string& hint);

}  // namespace cadre
