// SPDX-License-Identifier: Apache-2.0
// The documents of a text file or of a whole folder.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/data/file_list.hpp"

namespace cadre {

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

}  // namespace cadre
