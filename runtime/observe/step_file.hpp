// SPDX-License-Identifier: Apache-2.0
// A file with a line for each step, in their order, that a resumed run goes on with and that a crash may tear.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

namespace cadre {

class StepFile {
 public:
  // The step that a line is of; `where` names the line in the message when it is of none.
  using StepOf = std::function<int64_t(const std::string& line, const std::string& where)>;

  // A fresh run (resumed_step = 0) starts empty. Else the file is cut back to the lines of steps below or at
  // `resumed_step`; a last line without its end goes too.
  StepFile(std::filesystem::path path, int64_t resumed_step, const StepOf& step_of);

  // The line reaches the file at once. Throws ErrorKind::environment when it cannot be written.
  void append(const std::string& line);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::ofstream file_;
};

}  // namespace cadre
