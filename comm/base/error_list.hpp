// SPDX-License-Identifier: Apache-2.0
// Several errors of input as one: all that is wrong with a configuration, not only the first.
//
//   ErrorList errors;
//   errors.collect([&] { CADRE_CHECK(width > 0, "width = 0, allowed: integer >= 1"); });
//   errors.collect([&] { read_shape(file); });
//   errors.raise();
#pragma once

#include <vector>

#include "comm/base/check.hpp"

namespace cadre {

// Stands between two errors in the text of one; `main` prints each on a line of its own.
inline constexpr const char* kNextError = "; also: ";

class ErrorList {
 public:
  // Runs `part`, whose errors of kind input are kept; others pass through.
  template <class Part>
  void collect(Part&& part) {
    try {
      part();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::input) throw;
      errors_.push_back(error);
    }
  }

  bool empty() const { return errors_.empty(); }

  // Throws the only error, or one whose text has all with their hints; nothing when there is none.
  void raise() const;

 private:
  std::vector<Error> errors_;
};

}  // namespace cadre
