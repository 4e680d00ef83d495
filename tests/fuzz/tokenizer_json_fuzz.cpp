// SPDX-License-Identifier: Apache-2.0
// libFuzzer's door to the reader of tokenizer.json files.
#include "tests/fuzz/readers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  cadre::fuzz::read_tokenizer_json({data, size});
  return 0;
}
