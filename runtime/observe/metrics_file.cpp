// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/metrics_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/regular_file.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxWaitingBytes = size_t{64} << 20;

// Bytes up to the last line whose step is at most `last_step`, before the first of a later one. What has no line end was
// torn by a crash. Adds the numbers of damaged lines among them to `damaged`.
uintmax_t bytes_up_to(int64_t last_step, const fs::path& path, const StepFile::StepOf& step_of,
                      std::vector<int64_t>& damaged) {
  std::ifstream file(path, std::ios::binary);
  CADRE_CHECK(file.is_open(), fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)),
              "check that it is a file and that you may read it");
  uintmax_t bytes = 0;
  uintmax_t read = 0;
  std::vector<int64_t> unknown;  // since the last line that stays
  std::string line;
  for (int64_t number = 1; std::getline(file, line) && !file.eof(); ++number) {
    read += line.size() + 1;
    const std::optional<int64_t> step = step_of(line);
    if (step && *step > last_step) break;
    if (!step) {
      unknown.push_back(number);
      continue;
    }
    bytes = read;
    damaged.insert(damaged.end(), unknown.begin(), unknown.end());
    unknown.clear();
  }
  CADRE_CHECK(!file.bad(), fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)),
              "check the disk, or move the file away; the run goes on without it");
  return bytes;
}

void cut_back(const fs::path& path, int64_t last_step, const StepFile::StepOf& step_of, std::vector<int64_t>& damaged) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  expect_regular_file(path, "move it away; the run goes on without it");
  fs::resize_file(path, bytes_up_to(last_step, path, step_of, damaged), error);
  CADRE_CHECK(!error, fmt::format("cannot shorten {}: {}", path.string(), error.message()),
              "check that you may write to it");
}

}  // namespace

StepFile::StepFile(fs::path path, int64_t resumed_step, const StepOf& step_of) : path_(std::move(path)) {
  if (resumed_step > 0) cut_back(path_, resumed_step, step_of, damaged_lines_);
  const int fresh = resumed_step > 0 ? 0 : O_TRUNC;
  // O_NONBLOCK: a FIFO that nothing reads is refused; a file does not care.
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK | fresh, 0666);
  if (descriptor_ < 0) {
    throw Error(ErrorKind::environment, fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)),
                "check that the folder exists and that you may write to it");
  }
}

StepFile::~StepFile() { ::close(descriptor_); }

// False when lines would go into a file that has no name any more, or another one. When it cannot be seen, true.
bool StepFile::is_in_place() const {
  struct stat named {};
  struct stat open {};
  if (::stat(path_.c_str(), &named) != 0) return errno != ENOENT && errno != ENOTDIR;
  return ::fstat(descriptor_, &open) != 0 || (named.st_dev == open.st_dev && named.st_ino == open.st_ino);
}

void StepFile::reopen() {
  const int fresh = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
  if (fresh >= 0) {
    ::close(std::exchange(descriptor_, fresh));
    replaced_ = true;
  } else if (errno == ENOENT || errno == ENOTDIR) {
    throw Error(ErrorKind::environment,
                fmt::format("the folder {} was removed or renamed while the run goes on", path_.parent_path().string()),
                "bring it back and start the run again: it goes on from the last checkpoint there");
  } else {
    trouble_ = std::strerror(errno);
  }
}

void StepFile::append(const std::string& line) {
  waiting_ += line + '\n';
  trouble_.clear();
  if (!is_in_place()) reopen();
  while (!waiting_.empty() && trouble_.empty()) {
    const ssize_t written = ::write(descriptor_, waiting_.data(), waiting_.size());
    if (written >= 0) waiting_.erase(0, static_cast<size_t>(written));
    if (written < 0 && errno != EINTR) trouble_ = std::strerror(errno);
  }
  if (waiting_.size() > kMaxWaitingBytes) {
    throw Error(ErrorKind::environment, fmt::format("cannot write {}: {}", path_.string(), trouble_),
                "free some space, raise the quota or file-size limit (ulimit -f), or choose another out=");
  }
}

namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr const char* kValidationLoss = "validation_loss";

using Cell = std::pair<std::string, std::string>;  // column and value

std::string cell_text(const OrderedJson& value) {
  if (value.is_null()) return "";
  if (!value.is_array()) return value.dump();
  std::vector<std::string> parts;
  for (const OrderedJson& part : value) parts.push_back(part.dump());
  return fmt::format("{}", fmt::join(parts, " "));
}

std::vector<Cell> cells_of(const OrderedJson& line) {
  std::vector<Cell> cells;
  for (const auto& [key, value] : line.items()) {
    if (key != "layers") {
      cells.emplace_back(key, cell_text(value));
      continue;
    }
    for (const OrderedJson& layer : value) {
      const std::string prefix = fmt::format("layer{}.", layer.at("layer").get<int>());
      for (const auto& [inner, figure] : layer.items()) {
        if (inner != "layer") cells.emplace_back(prefix + inner, cell_text(figure));
      }
    }
  }
  return cells;
}

// The names of the columns are of no step, and stay. An evaluation, which alone has no second column, is made again by a
// run that goes on from its step.
std::optional<int64_t> step_of_row(const std::string& line) {
  if (line.starts_with("step,")) return 0;
  int64_t step = 0;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data(), end, step);
  if (error != std::errc() || stop == end || *stop != ',') return std::nullopt;
  return step + (stop + 1 != end && stop[1] == ',' ? 1 : 0);
}

std::vector<std::string> columns_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  std::vector<std::string> columns;
  std::istringstream names(line);
  for (std::string name; std::getline(names, name, ',');) columns.push_back(name);
  return columns;
}

}  // namespace

MetricsCsv::MetricsCsv(const std::filesystem::path& path, int64_t resumed_step)
    : file_(path, resumed_step, step_of_row), columns_(columns_in(path)) {}

void MetricsCsv::add(const OrderedJson& line) {
  if (columns_.empty() && line.contains(kValidationLoss)) return;  // a step names the columns
  const std::vector<Cell> cells = cells_of(line);
  if (columns_.empty()) {
    for (const Cell& cell : cells) columns_.push_back(cell.first);
    if (std::ranges::find(columns_, kValidationLoss) == columns_.end()) columns_.emplace_back(kValidationLoss);
    file_.append(fmt::format("{}", fmt::join(columns_, ",")));
  }
  const std::map<std::string, std::string> values(cells.begin(), cells.end());
  std::vector<std::string> row;
  for (const std::string& column : columns_) {
    const auto found = values.find(column);
    row.push_back(found == values.end() ? "" : found->second);
  }
  file_.append(fmt::format("{}", fmt::join(row, ",")));
}

namespace {

// Numbers that were not finite are null in the file.
double number(const nlohmann::json& record, const char* key) {
  const nlohmann::json& value = record.at(key);
  return value.is_null() ? 0.0 : value.get<double>();
}

LoggedStep step_from(const nlohmann::json& record) {
  LoggedStep step;
  step.balance = {record.at("step").get<int64_t>(), number(record, "expert_cv"), number(record, "device_cv"),
                  number(record, "expert_max_vio"), number(record, "drop_rate")};
  const auto known = [&](const char* key) {
    const auto found = record.find(key);
    return found != record.end() && found->is_number() ? std::optional(found->get<double>()) : std::nullopt;
  };
  step.loss = known("loss");
  step.num_tokens = known("tokens");
  step.device_max_over_mean = known("device_max_over_mean");
  step.move_got_ms = known("move_got_ms");
  const auto count = [&](const char* key) { return std::llround(known(key).value_or(0)); };
  if (count("moved_experts") > 0 || count("refused_experts") > 0) {
    step.move = {.step = step.balance.step,
                 .moved = count("moved_experts"),
                 .refused = count("refused_experts"),
                 .bytes = count("moved_bytes"),
                 .stall_ms = known("rebalance_ms").value_or(0),
                 .load_before = step.device_max_over_mean,
                 .gain_ms = known("move_gain_ms")};
  }
  for (const nlohmann::json& layer : record.at("layers")) {
    step.layers.push_back({layer.at("layer").get<int>(), layer.at("counts").get<std::vector<int64_t>>()});
  }
  return step;
}

}  // namespace

std::vector<LoggedStep> read_metrics(const std::filesystem::path& path) {
  std::vector<LoggedStep> steps;
  std::error_code missing;
  if (std::filesystem::exists(path, missing)) expect_regular_file(path, "move it away; a report can do without it");
  std::ifstream file(path, std::ios::binary);
  std::string line;
  for (int64_t number = 1; std::getline(file, line) && !file.eof(); ++number) {
    try {
      const nlohmann::json record = nlohmann::json::parse(line);
      if (record.at("step").is_number_integer() && !record.contains("validation_loss"))
        steps.push_back(step_from(record));
    } catch (const nlohmann::json::exception& error) {
      throw Error(ErrorKind::input, fmt::format("{}:{} is not a step: {}", path.string(), number, error.what()),
                  "remove that line, or move the file away; a report can do without it");
    }
  }
  return steps;
}

}  // namespace cadre
