// SPDX-License-Identifier: Apache-2.0
#include "runtime/infer/text_stream.hpp"

#include <utility>

namespace cadre {

TextStream::TextStream(size_t num_texts, std::function<void(std::string_view)> sink)
    : sink_(std::move(sink)), texts_(num_texts) {}

void TextStream::add(size_t text, std::string_view bytes) {
  texts_[text].waiting += texts_[text].characters.put(bytes);
  write();
}

void TextStream::end(size_t text) {
  texts_[text].waiting += texts_[text].characters.finish() + "\n";
  texts_[text].is_over = true;
  write();
}

void TextStream::write() {
  for (; current_ < texts_.size(); ++current_) {
    const std::string characters = std::exchange(texts_[current_].waiting, {});
    if (!characters.empty()) sink_(characters);
    if (!texts_[current_].is_over) return;
  }
}

}  // namespace cadre
