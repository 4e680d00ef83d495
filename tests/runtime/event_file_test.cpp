// SPDX-License-Identifier: Apache-2.0
// Event files against published check values of CRC-32C (RFC 3720, B.4) and bytes that the protocol buffers of
// TensorBoard 2 give for the same messages; tests/launch/tensorboard_test.sh reads a file with TensorBoard where it is installed.
#include "runtime/observe/event_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cstring>

#include "tests/support/files.hpp"
#include "tests/support/step_records.hpp"

namespace cadre::event_file_test {
namespace {

using testing::HasSubstr;
using testing::Not;

std::string hex_of(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

uint64_t number_at(const std::string& bytes, size_t at, size_t size) {
  uint64_t number = 0;
  std::memcpy(&number, bytes.data() + at, size);
  return number;
}

// The payloads of a file of records, whose checksums must hold.
std::vector<std::string> records_in(const std::string& bytes) {
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    const size_t length = number_at(bytes, at, 8);
    EXPECT_EQ(number_at(bytes, at + 8, 4), masked_crc32c(bytes.substr(at, 8)));
    records.push_back(bytes.substr(at + 12, length));
    EXPECT_EQ(number_at(bytes, at + 12 + length, 4), masked_crc32c(records.back()));
    at += length + 16;
  }
  return records;
}

TEST(EventFile, ChecksumsAreThoseOfRfc3720) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283U);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aaU);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43U);
  // ((crc >> 15) | (crc << 17)) + 0xa282ead8 of the first, worked out by hand.
  EXPECT_EQ(masked_crc32c("123456789"), 0xe3069283U / 32768U + 0x25060000U + 0xa282ead8U);
}

TEST(EventFile, MessagesHaveTheBytesOfProtocolBuffers) {
  EXPECT_EQ(hex_of(version_event(1.5)), "09000000000000f83f1a0d627261696e2e4576656e743a32");
  EXPECT_EQ(hex_of(summary_event(1.5, 300, {scalar_value("a", 0.5)})),
            "09000000000000f83f10ac022a0a0a080a0161150000003f");
  EXPECT_EQ(hex_of(start_event(1.5, 3)), "09000000000000f83f10033a020801");
  EXPECT_EQ(hex_of(text_value("t", "x")), "0a0174420b08071204120208014201784a080a060a0474657874");
}

// min 0, max 2, num 4, sum 0.5 + 3 * 1.5 = 5, squares 0.25 + 3 * 2.25 = 7; limits 1, 2; slots 1, 3.
TEST(EventFile, AHistogramHasTheLoadOfEachExpert) {
  EXPECT_EQ(
      hex_of(load_value("h", {1, 3})),
      "0a01682a48110000000000000040190000000000001040210000000000001440290000000000001c403210000000000000f03f00000000"
      "000000403a10000000000000f03f0000000000000840");
}

TEST(EventFile, ShowsAStepAndItsLayersAndAnEvaluation) {
  const auto line = nlohmann::ordered_json::parse(step_json(test::example_step(), {1700000000.25, "run"}));
  const std::string event = event_of_line(line, 0.0);
  for (const char* tag : {"train/loss", "train/learning_rate", "speed/tokens_per_s", "balance/expert_cv",
                          "layer1/expert_cv", "layer3/max_vio", "layer3/expert_load"}) {
    EXPECT_THAT(event, HasSubstr(tag));
  }
  EXPECT_THAT(event, HasSubstr(scalar_value("train/loss", 2.1034)));
  EXPECT_THAT(event, HasSubstr(load_value("layer3/expert_load", {4, 0, 2, 2})));
  EXPECT_THAT(event_of_line({{"step", 3}, {"validation_loss", 1.25}}, 0.0),
              HasSubstr(scalar_value("validation/loss", 1.25)));
  auto not_finite = line;
  not_finite["loss"] = nullptr;
  EXPECT_THAT(event_of_line(not_finite, 0.0), Not(HasSubstr("train/loss")));
  EXPECT_EQ(event_of_line({{"other", 1}}, 0.0), "");
}

TEST(EventFile, ARunAndItsConversionHaveTheSameEvents) {
  const test::TemporaryDirectory out;
  test::write_file(out / "run.toml", "seed = 7\n");
  LogConfig config;
  config.tensorboard = true;
  test::printed_by([&] {
    RunLog log(out.path(), 0, config);
    for (int64_t step = 1; step <= 3; ++step) log.step(test::example_step(step));
    log.evaluation(3, 1.25);
  });
  EXPECT_EQ(write_event_file(out.path(), out / "converted"), 4);
  const auto events_in = [](const std::filesystem::path& folder) {
    const auto file = std::filesystem::directory_iterator(folder)->path();
    EXPECT_THAT(file.filename().string(), testing::StartsWith("events.out.tfevents."));
    return records_in(test::read_file(file));
  };
  const std::vector<std::string> live = events_in(out / "tensorboard");
  const std::vector<std::string> converted = events_in(out / "converted");
  ASSERT_EQ(live.size(), 7U);  // version, start, configuration, three steps, evaluation
  EXPECT_THAT(live[0], HasSubstr("brain.Event:2"));
  EXPECT_THAT(live[2], HasSubstr("    seed = 7\n"));
  ASSERT_EQ(converted.size(), live.size());
  for (size_t i = 3; i < live.size(); ++i) EXPECT_EQ(converted[i], live[i]);
}

TEST(EventFile, RefusesAFolderWithoutMetrics) {
  const test::TemporaryDirectory out;
  EXPECT_THAT(test::error_of([&] { write_event_file(out.path(), out / "t"); }),
              HasSubstr("metrics.jsonl: cannot read"));
  test::write_file(out / "metrics.jsonl", "");
  EXPECT_THAT(test::error_of([&] { write_event_file(out.path(), out / "t"); }), HasSubstr("has no step"));
  test::write_file(out / "metrics.jsonl", step_json(test::example_step()) + "\n");
  test::write_file(out / "file", "");
  EXPECT_THAT(test::error_of([&] { write_event_file(out.path(), out / "file"); }), HasSubstr("cannot write"));
}

}  // namespace
}  // namespace cadre::event_file_test
