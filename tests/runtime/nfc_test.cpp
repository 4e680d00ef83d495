// SPDX-License-Identifier: Apache-2.0
// A tokenizer.json with the normalizer NFC finds the ids of the `tokenizers` package (tests/golden/nfc, made by `make` there).
#include "runtime/tokenizer/nfc.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <filesystem>

#include "runtime/checkpoint/file.hpp"
#include "runtime/tokenizer/tokenizer.hpp"
#include "tests/support/files.hpp"
#include "tests/support/messages.hpp"

namespace cadre::nfc_test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFolder = fs::path(CADRE_TEST_FOLDER) / "golden/nfc";

TEST(Nfc, FindsTheIdsOfTheTokenizersPackage) {
  if (!has_nfc()) GTEST_SKIP() << "ICU is not built in";
  const auto tokenizer = open_tokenizer((kFolder / "tokenizer.json").string());
  const json expected = read_json_file(kFolder / "expected.json");
  ASSERT_GE(expected["texts"].size(), 10U);
  for (const json& one : expected["texts"]) {
    const std::string text = one["text"];
    EXPECT_EQ(tokenizer->encode(text), one["ids"].get<std::vector<int32_t>>()) << text;
  }
}

TEST(Nfc, ComposesAndLeavesOtherBytes) {
  if (!has_nfc()) {
    test::expect_message(test::message_of([] { to_nfc("a"); }), {"NFC", "ICU", "libicu-dev"});
    return;
  }
  EXPECT_EQ(to_nfc(""), "");
  EXPECT_EQ(to_nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(to_nfc("\xFF e\xCC\x81\xC3"), "\xFF \xC3\xA9\xC3");
  EXPECT_EQ(to_nfc("\xE2\x84\xAB"), "\xC3\x85");      // the sign of the unit Angstrom
  EXPECT_EQ(to_nfc("\xEF\xAC\x81"), "\xEF\xAC\x81");  // a ligature, which is no canonical composition
}

TEST(Nfc, InASequenceOfOneCountsAndBesideAnotherIsRefused) {
  if (!has_nfc()) GTEST_SKIP() << "ICU is not built in";
  const test::TemporaryDirectory folder;
  const auto with = [&](const json& normalizer) {
    json file = read_json_file(kFolder / "tokenizer.json");
    file["normalizer"] = normalizer;
    write_text_file(folder / "tokenizer.json", file.dump());
    return open_tokenizer(folder.path().string())->encode("cafe\xCC\x81");
  };
  const json nfc = {{"type", "NFC"}};
  EXPECT_EQ(with({{"type", "Sequence"}, {"normalizers", json::array({nfc})}}), with(nfc));
  EXPECT_NE(with(json()), with(nfc));
  test::expect_message(test::message_of([&] {
                         with({{"type", "Sequence"}, {"normalizers", {nfc, nfc}}});
                       }),
                       {"normalizer = \"Sequence\"", "none | NFC"});
}

}  // namespace
}  // namespace cadre::nfc_test
