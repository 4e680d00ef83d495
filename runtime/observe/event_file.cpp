// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/event_file.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <sstream>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;

constexpr uint32_t kCastagnoli = 0x82f63b78;  // reversed
constexpr uint32_t kMaskDelta = 0xa282ead8;

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1U) != 0 ? kCastagnoli : 0U);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

template <class Integer>
std::string little_endian(Integer value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof(Integer); ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xffU);
  return bytes;
}

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7fU) | 0x80U);
  return bytes + static_cast<char>(value);
}

// Fields of protocol buffers, by wire type.
std::string field_key(int field, int wire_type) {
  return varint(static_cast<uint64_t>(field) << 3 | static_cast<uint64_t>(wire_type));
}
std::string integer_field(int field, int64_t value) {
  return field_key(field, 0) + varint(static_cast<uint64_t>(value));
}
std::string double_field(int field, double value) {
  return field_key(field, 1) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string float_field(int field, float value) {
  return field_key(field, 5) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes_field(int field, std::string_view bytes) {
  return field_key(field, 2) + varint(bytes.size()) + std::string(bytes);
}
std::string packed_doubles(int field, const std::vector<double>& values) {
  std::string bytes;
  for (const double value : values) bytes += little_endian(std::bit_cast<uint64_t>(value));
  return bytes_field(field, bytes);
}

// Numbers of fields, as in event.proto, summary.proto, tensor.proto.
constexpr int kEventWallTime = 1;
constexpr int kEventStep = 2;
constexpr int kEventFileVersion = 3;
constexpr int kEventSummary = 5;
constexpr int kEventSessionLog = 7;
constexpr int kSessionLogStatus = 1;
constexpr int64_t kSessionStart = 1;
constexpr int kSummaryValue = 1;
constexpr int kValueTag = 1;
constexpr int kValueSimple = 2;
constexpr int kValueHistogram = 5;
constexpr int kValueTensor = 8;
constexpr int kValueMetadata = 9;
constexpr int kMetadataPlugin = 1;
constexpr int kPluginName = 1;
constexpr int kTensorType = 1;
constexpr int kTensorShape = 2;
constexpr int kTensorStrings = 8;
constexpr int kShapeDim = 2;
constexpr int kDimSize = 1;
constexpr int64_t kTypeString = 7;

std::string event_at(double time, int64_t step) {
  return double_field(kEventWallTime, time) + integer_field(kEventStep, step);
}

struct ShownFigure {
  const char* key;
  const char* tag;
};
constexpr std::array<ShownFigure, 14> kOfStep = {{{"loss", "train/loss"},
                                                  {"balance_loss", "train/balance_loss"},
                                                  {"mtp_loss", "train/mtp_loss"},
                                                  {"grad_norm", "train/grad_norm"},
                                                  {"lr", "train/learning_rate"},
                                                  {"tokens_per_s", "speed/tokens_per_s"},
                                                  {"step_ms", "speed/step_ms"},
                                                  {"wait_ms_mean", "speed/wait_ms_mean"},
                                                  {"expert_cv", "balance/expert_cv"},
                                                  {"expert_max_vio", "balance/expert_max_vio"},
                                                  {"device_cv", "balance/device_cv"},
                                                  {"drop_rate", "balance/drop_rate"},
                                                  {"dead_experts", "balance/dead_experts"},
                                                  {"validation_loss", "validation/loss"}}};
constexpr std::array<ShownFigure, 5> kOfLayer = {{{"expert_cv", "expert_cv"},
                                                  {"max_vio", "max_vio"},
                                                  {"entropy", "entropy"},
                                                  {"dead", "dead_experts"},
                                                  {"device_cv", "device_cv"}}};

template <size_t N>
void add_numbers(const OrderedJson& record, const std::array<ShownFigure, N>& shown, const std::string& prefix,
                 std::vector<std::string>& values) {
  for (const ShownFigure& one : shown) {
    const auto found = record.find(one.key);
    if (found != record.end() && found->is_number())
      values.push_back(scalar_value(prefix + one.tag, found->template get<double>()));
  }
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (file) text << file.rdbuf();
  return text.str();
}

double now_in_seconds() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffU;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<unsigned char>(c)) & 0xffU];
  return crc ^ 0xffffffffU;
}

uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + kMaskDelta; }

std::string tf_record(std::string_view bytes) {
  const std::string length = little_endian(static_cast<uint64_t>(bytes.size()));
  return length + little_endian(masked_crc32c(length)) + std::string(bytes) + little_endian(masked_crc32c(bytes));
}

std::string scalar_value(std::string_view tag, double value) {
  return bytes_field(kValueTag, tag) + float_field(kValueSimple, static_cast<float>(value));
}

// Expert e is the bucket (e, e + 1], and its slots have the value e + 0.5.
std::string load_value(std::string_view tag, const std::vector<int64_t>& counts) {
  double num = 0.0;
  double sum = 0.0;
  double squares = 0.0;
  std::vector<double> limits;
  std::vector<double> slots;
  for (size_t expert = 0; expert < counts.size(); ++expert) {
    const double middle = static_cast<double>(expert) + 0.5;
    const auto count = static_cast<double>(counts[expert]);
    num += count;
    sum += count * middle;
    squares += count * middle * middle;
    limits.push_back(static_cast<double>(expert) + 1.0);
    slots.push_back(count);
  }
  const std::array<double, 5> figures = {0.0, static_cast<double>(counts.size()), num, sum, squares};
  std::string histogram;
  for (size_t i = 0; i < figures.size(); ++i) {
    if (figures[i] != 0.0) histogram += double_field(static_cast<int>(i) + 1, figures[i]);
  }
  histogram += packed_doubles(6, limits) + packed_doubles(7, slots);
  return bytes_field(kValueTag, tag) + bytes_field(kValueHistogram, histogram);
}

std::string text_value(std::string_view tag, std::string_view text) {
  const std::string shape = bytes_field(kShapeDim, integer_field(kDimSize, 1));
  const std::string tensor =
      integer_field(kTensorType, kTypeString) + bytes_field(kTensorShape, shape) + bytes_field(kTensorStrings, text);
  const std::string plugin = bytes_field(kMetadataPlugin, bytes_field(kPluginName, "text"));
  return bytes_field(kValueTag, tag) + bytes_field(kValueTensor, tensor) + bytes_field(kValueMetadata, plugin);
}

std::string summary_event(double time, int64_t step, const std::vector<std::string>& values) {
  std::string summary;
  for (const std::string& value : values) summary += bytes_field(kSummaryValue, value);
  return event_at(time, step) + bytes_field(kEventSummary, summary);
}

std::string version_event(double time) {
  return double_field(kEventWallTime, time) + bytes_field(kEventFileVersion, "brain.Event:2");
}

std::string start_event(double time, int64_t step) {
  return event_at(time, step) + bytes_field(kEventSessionLog, integer_field(kSessionLogStatus, kSessionStart));
}

std::string event_of_line(const OrderedJson& line, double time) {
  if (!line.is_object() || !line.contains("step") || !line["step"].is_number_integer()) return "";
  std::vector<std::string> values;
  add_numbers(line, kOfStep, "", values);
  if (line.contains("layers") && line["layers"].is_array()) {
    for (const OrderedJson& layer : line["layers"]) {
      const std::string name = fmt::format("layer{}", layer.value("layer", 0));
      add_numbers(layer, kOfLayer, name + "/", values);
      if (layer.contains("counts")) {
        values.push_back(load_value(name + "/expert_load", layer["counts"].get<std::vector<int64_t>>()));
      }
    }
  }
  if (values.empty()) return "";
  return summary_event(line.value("time", time), line["step"].get<int64_t>(), values);
}

EventFile::EventFile(const fs::path& folder, const std::string& run, double time, int64_t first_step,
                     const std::string& config)
    : time_(time) {
  std::error_code error;
  fs::create_directories(folder, error);
  path_ = folder / fmt::format("events.out.tfevents.{:010}.{}.{}", static_cast<int64_t>(time), host_name(), run);
  file_.open(path_, std::ios::binary | std::ios::app);
  if (!file_) {
    throw Error(ErrorKind::environment, fmt::format("cannot write {}", path_.string()),
                "choose a folder that can be written, or log.tensorboard=false");
  }
  file_ << tf_record(version_event(time)) << tf_record(start_event(time, first_step));
  if (config.empty()) return;
  std::istringstream lines(config);
  std::string code;
  for (std::string line; std::getline(lines, line);) code += "    " + line + '\n';
  file_ << tf_record(summary_event(time, first_step, {text_value("configuration", code)})) << std::flush;
}

void EventFile::add(const OrderedJson& line) {
  const std::string event = event_of_line(line, time_);
  if (!event.empty()) file_ << tf_record(event) << std::flush;
}

int64_t write_event_file(const fs::path& run, const fs::path& folder) {
  const fs::path metrics = run / "metrics.jsonl";
  std::ifstream file(metrics);
  CADRE_CHECK(file, fmt::format("{}: cannot read this file", metrics.string()), "name the folder of a run");
  std::vector<OrderedJson> lines;
  for (std::string text; std::getline(file, text);) {
    OrderedJson line = OrderedJson::parse(text, /*cb=*/nullptr, /*allow_exceptions=*/false);
    if (line.is_object() && line.contains("step")) lines.push_back(std::move(line));
  }
  CADRE_CHECK(!lines.empty(), fmt::format("{} has no step", metrics.string()), "let the run make a step first");
  const double time = lines.front().value("time", now_in_seconds());
  EventFile events(folder, lines.front().value("run", "run"), time, lines.front().value("step", int64_t{1}),
                   text_of(run / "run.toml"));
  for (const OrderedJson& line : lines) events.add(line);
  if (events.trouble()) {
    throw Error(ErrorKind::environment, fmt::format("cannot write {}", events.path().string()), "is the disk full?");
  }
  return static_cast<int64_t>(lines.size());
}

}  // namespace cadre
