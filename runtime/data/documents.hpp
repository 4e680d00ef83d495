// SPDX-License-Identifier: Apache-2.0
// The documents of a text file or of a whole folder, and which files a folder has.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// The files that a path names, and what below it is no file to read.

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

struct Documents {
  std::string text;           // all of them, with the separator between each two
  std::vector<size_t> begin;  // of each, in `text`; each ends a separator before the next
  size_t separator_bytes = 0;
  std::vector<LeftOut> left_out;

  size_t size() const { return begin.size(); }
  std::string_view document(size_t index) const;
  size_t num_bytes() const { return text.size() - (size() - 1) * separator_bytes; }  // of the files
};

// The bytes of a text file, or those of every text file below a folder (list_files), ordered by path. Below a folder, empty
// files and those with a zero byte are left out and named. A missing path, a file that cannot be read and a result without
// a byte are errors.
Documents read_documents(const std::string& path, std::string_view separator);

// Documents in JSON Lines: each line is an object, and one of its fields is the text.

// By its name: .jsonl, .ndjson or .json.
bool is_json_lines(const std::filesystem::path& path);

// The string `field` of the object that the line is. Throws on anything else; `where` begins the message.
std::string text_of_json_line(std::string_view line, const std::string& field, const std::string& where);

// The texts of all lines that are not blank, with the separator between each two; empty texts are left out. Throws where there is
// no text.
Documents read_json_lines(const std::string& path, const std::string& field, std::string_view separator);

}  // namespace cadre
