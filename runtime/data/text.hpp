// SPDX-License-Identifier: Apache-2.0
// Text of a file or of a whole folder.
#pragma once

#include <string>

namespace cadre {

// The bytes of a text file, or those of every text file below a folder, ordered by path and joined with one newline.
// Below a folder, symbolic links, *.dat files and files with a zero byte (binary ones) are skipped. A missing path, a
// file that cannot be read and a result without a byte are errors.
std::string read_text(const std::string& path);

}  // namespace cadre
