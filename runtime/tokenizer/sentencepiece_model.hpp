// SPDX-License-Identifier: Apache-2.0
// What the file of a SentencePiece model says that the library does not tell.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cadre {

struct SentencePieceModel {
  bool is_bpe = false;
  bool maps_characters = false;
  bool removes_spaces = true;             // at the ends of a text, and of several all but one
  std::vector<std::string> special;       // pieces that are no text: control symbols and the one for what is unknown
  std::vector<std::string> user_defined;  // pieces that are never cut
};

// Throws on what is damaged.
SentencePieceModel read_sentencepiece_model(std::string_view model);

// The model, but with all spaces as they are and none put in front of a text; with or without the map of characters.
std::string with_spaces_as_they_are(const std::string& model, bool maps_characters);

}  // namespace cadre
