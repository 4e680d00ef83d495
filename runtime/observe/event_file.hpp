// SPDX-License-Identifier: Apache-2.0
// Event files of TensorBoard: TFRecords of Event messages (tensorflow/core/util/event.proto, framework/summary.proto),
// made of the lines of metrics.jsonl.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

// CRC-32C (Castagnoli), and as TFRecords store it: rotated right by 15 bits, plus 0xa282ead8.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

// A TFRecord: length, its checksum, bytes, their checksum; little endian.
std::string tf_record(std::string_view bytes);

// Summary values: a number; the load of experts as a histogram whose axis is the number of the expert; text (Markdown).
std::string scalar_value(std::string_view tag, double value);
std::string load_value(std::string_view tag, const std::vector<int64_t>& counts);
std::string text_value(std::string_view tag, std::string_view text);

// An Event with these values, and the two without any: the first of a file, and a start that hides what earlier files have
// of `step` and later.
std::string summary_event(double time, int64_t step, const std::vector<std::string>& values);
std::string version_event(double time);
std::string start_event(double time, int64_t step);

// What a line of metrics.jsonl shows: loss, norm, rate, balance over all layers and of each; numbers that are not finite
// are left out. Empty for a line of neither a step nor an evaluation. `time` for a line that has none.
std::string event_of_line(const nlohmann::ordered_json& line, double time);

// Appends events to a new file in a folder. What cannot be written is lost; trouble() says so.
class EventFile {
 public:
  // Makes the folder. `first_step`: the first step that will be written. `config`: shown as text, a TOML file.
  EventFile(const std::filesystem::path& folder, const std::string& run, double time, int64_t first_step,
            const std::string& config);

  void add(const nlohmann::ordered_json& line);
  const std::filesystem::path& path() const { return path_; }
  bool trouble() const { return !file_.good(); }

 private:
  std::filesystem::path path_;
  std::ofstream file_;
  double time_;
};

// All lines of RUN_DIR/metrics.jsonl as an event file in `folder`; the number of lines. Throws ErrorKind::input where there
// is no such file, ErrorKind::environment where the folder cannot be written.
int64_t write_event_file(const std::filesystem::path& run, const std::filesystem::path& folder);

}  // namespace cadre
