// SPDX-License-Identifier: Apache-2.0
// In the place of sentencepiece.cpp, where the library was not found.
#include "comm/base/check.hpp"
#include "runtime/tokenizer/sentencepiece.hpp"

namespace cadre {

bool has_sentencepiece() { return false; }

std::unique_ptr<Tokenizer> make_sentencepiece(const std::string&, const SentencePieceRules&) {
  throw Error(ErrorKind::environment, "a tokenizer of SentencePiece, which is not built in",
              "apt install libsentencepiece-dev, then build Cadre again");
}

}  // namespace cadre
