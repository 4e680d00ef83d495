// SPDX-License-Identifier: Apache-2.0
// The files that a path names, and what below it is no file to read.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace cadre {

// Something below a folder that is not read: its path from the folder on, and why.
struct LeftOut {
  std::string path;
  std::string why;
  bool operator==(const LeftOut&) const = default;
};

struct FileList {
  std::vector<std::filesystem::path> files;  // ordered by path
  std::vector<LeftOut> left_out;             // the same
};

// All regular files below a folder, through symbolic links too. A file or folder that a link names once more is read once
// and left out under its other name, so that links in a circle end. FIFOs, sockets and devices are left out. Throws on a
// folder that cannot be listed and on a link that leads to no file.
FileList list_files(const std::filesystem::path& folder);

// Throws unless `path` is a regular file or a folder, also by links; `key` stands in the message. Opens nothing, so that a
// FIFO does not block.
void check_file_or_folder(const std::filesystem::path& path, const char* key);

}  // namespace cadre
