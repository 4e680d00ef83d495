// SPDX-License-Identifier: Apache-2.0
// Each file in tests/fuzz/regressions goes through the reader that the fuzzers drive: the vectors that a reader must take
// or refuse with one line, and whatever a fuzzer once found. A reader that is wrong aborts.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <vector>

#include "runtime/checkpoint/safetensors.hpp"
#include "tests/fuzz/readers.hpp"
#include "tests/support/files.hpp"

namespace cadre::fuzz_regressions_test {
namespace {

using Reader = void (*)(std::span<const uint8_t>);

void feed(const char* target, Reader read, size_t least) {
  std::vector<std::filesystem::path> files;
  for (const auto& item :
       std::filesystem::directory_iterator(std::filesystem::path(CADRE_TEST_FOLDER) / "fuzz/regressions" / target)) {
    files.push_back(item.path());
  }
  std::ranges::sort(files);
  EXPECT_GE(files.size(), least) << "files are missing in " << target;
  for (const auto& file : files) {
    SCOPED_TRACE(file);
    const std::string content = test::read_file(file);
    read({reinterpret_cast<const uint8_t*>(content.data()), content.size()});
    // Cut short anywhere near its ends, it must be refused as calmly.
    for (const size_t size :
         {size_t{0}, size_t{7}, content.size() / 2, content.size() - std::min<size_t>(1, content.size())}) {
      read({reinterpret_cast<const uint8_t*>(content.data()), std::min(size, content.size())});
    }
  }
}

// The published bad-input vectors of the format, each with the one line that says what is wrong with it.
TEST(FuzzRegressions, BadSafetensorsGiveOneClearLine) {
  struct Vector {
    const char* file;
    const char* words;  // "": the file is good
  };
  constexpr Vector kVectors[] = {
      {"empty", "has 0 bytes; a safetensors file has at least 8"},
      {"length_only", "claims a header of 60 bytes but has only 8"},
      {"header_beyond_file", "claims a header of 1000 bytes but has only 10"},
      {"header_too_large", "the limit is 100000000"},
      {"not_utf8", "the header is not UTF-8"},
      {"bad_json", "the header is not JSON at byte"},
      {"trailing_bytes", "its tensors need 16 bytes of data, it has 32"},
      {"truncated", "its tensors need 16 bytes of data, it has 14"},
      {"wrong_offsets", "tensor \"test\": I32[2,2] needs 16 bytes, data_offsets give 4"},
      {"overflow_of_elements", "tensor \"test\": the extent 18446744073709551614 overflows"},
      {"overflow_of_bytes", "tensor \"test\": the shape [2,9223372036854775807] overflows"},
      {"ten_tensors_in_one_place", "data_offsets [0,16] must begin at 16"},
      {"name_twice", "the name \"x\" stands twice"},
      {"half_bytes", "its 12 bits are not whole bytes"},
      {"good", ""},
      {"mixed", ""},
      {"empty_header_padded", ""},
      {"empty_header_led", ""},
  };
  const auto folder = std::filesystem::path(CADRE_TEST_FOLDER) / "fuzz/regressions" / "safetensors";
  for (const auto& [file, words] : kVectors) {
    SCOPED_TRACE(file);
    const auto open = [&, path = folder / file] { SafetensorsReader reader(path); };
    if (std::string_view(words).empty()) {
      EXPECT_NO_THROW(open());
    } else {
      const std::string text = test::error_of(open);
      EXPECT_NE(text.find(words), std::string::npos) << text;
      EXPECT_NE(text.find((folder / file).string()), std::string::npos) << text;
      EXPECT_NE(text.find("(hint: "), std::string::npos) << text;
    }
  }
}

TEST(FuzzRegressions, Safetensors) { feed("safetensors", fuzz::read_safetensors, 18); }
TEST(FuzzRegressions, ConfigJson) { feed("config_json", fuzz::read_config_json, 18); }
TEST(FuzzRegressions, TokenBin) { feed("token_bin", fuzz::read_token_bin, 13); }
TEST(FuzzRegressions, TokenizerJson) { feed("tokenizer_json", fuzz::read_tokenizer_json, 14); }

}  // namespace
}  // namespace cadre::fuzz_regressions_test
