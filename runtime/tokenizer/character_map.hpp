// SPDX-License-Identifier: Apache-2.0
// The library of SentencePiece trusts what a model says of the normalisation of characters: places in memory. Here it is
// looked through before it gets there.
#pragma once

#include <string_view>

namespace cadre {

// The content of a tokenizer.model. Throws where following one of its character maps would lead out of it; other faults the
// library finds itself.
void check_character_maps(std::string_view model);

}  // namespace cadre
