// SPDX-License-Identifier: Apache-2.0
// Texts that are made at the same time, as a reader wants them: one after the other, each as it comes, in whole characters.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/utf8_stream.hpp"

namespace cadre {

// The first text that is not over goes to `sink` as it is made; later ones wait for their turn. An end of line stands behind
// each.
class TextStream {
 public:
  TextStream(size_t num_texts, std::function<void(std::string_view)> sink);

  void add(size_t text, std::string_view bytes);
  void end(size_t text);

 private:
  struct Text {
    Utf8Stream characters;
    std::string waiting;
    bool is_over = false;
  };

  void write();

  std::function<void(std::string_view)> sink_;
  std::vector<Text> texts_;
  size_t current_ = 0;
};

}  // namespace cadre
