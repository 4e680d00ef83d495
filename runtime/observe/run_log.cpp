// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/run_log.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;  // keys stay in the order of writing

double tokens_per_second(const StepRecord& record) {
  return static_cast<double>(record.global.num_tokens) / (record.step_ms * 1e-3);
}

double sum_of(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

double max_of(const std::vector<double>& values) { return values.empty() ? 0.0 : std::ranges::max(values); }

double mean_of(const std::vector<double>& values) {
  return values.empty() ? 0.0 : sum_of(values) / static_cast<double>(values.size());
}

// "812", "36.4k", "1.25M"
std::string short_number(double value) {
  if (value >= 1e6) return fmt::format("{:.2f}M", value * 1e-6);
  if (value >= 1e3) return fmt::format("{:.1f}k", value * 1e-3);
  return fmt::format("{:.0f}", value);
}

std::string wait_text(const GlobalStep& global) {
  const double step_ms = sum_of(global.device_step_ms);
  return step_ms > 0.0 ? fmt::format("{:.1f}%", 100.0 * sum_of(global.device_wait_ms) / step_ms) : "-";
}

// The index of the layer whose MaxVio is the highest.
size_t worst_layer(const GlobalStep& global) {
  const auto max_vio = [](const std::vector<int64_t>& counts) { return balance_figures(counts).max_vio; };
  const auto worst = std::ranges::max_element(global.expert_counts, {}, max_vio);
  return static_cast<size_t>(worst - global.expert_counts.begin());
}

std::string balance_text(const StepRecord& record) {
  const GlobalStep& global = record.global;
  const BalanceFigures experts = global.expert_balance();
  const BalanceFigures devices = balance_figures(global.device_slots);
  return fmt::format(
      " | experts cv {:.2f} maxvio {:.2f} (layer {}) dead {} | ranks cv {:.2f} max/mean {:.2f} | drop {:.2f}%",
      experts.cv, experts.max_vio, record.moe_layers.at(worst_layer(global)), experts.dead, devices.cv,
      devices.max_vio + 1.0, 100.0 * global.drop_rate());
}

Json layers_json(const StepRecord& record) {
  Json layers = Json::array();
  for (size_t i = 0; i < record.global.expert_counts.size(); ++i) {
    const std::vector<int64_t>& counts = record.global.expert_counts[i];
    const BalanceFigures figures = balance_figures(counts);
    layers.push_back({{"layer", record.moe_layers.at(i)},
                      {"expert_cv", figures.cv},
                      {"max_vio", figures.max_vio},
                      {"entropy", figures.entropy},
                      {"dead", figures.dead},
                      {"counts", counts}});
  }
  return layers;
}

int64_t step_of(const std::string& line, const fs::path& path, int64_t line_number) {
  const auto json = nlohmann::json::parse(line, /*cb=*/nullptr, /*allow_exceptions=*/false);
  CADRE_CHECK(json.is_object() && json.contains("step") && json["step"].is_number_integer(),
              fmt::format("{}:{} is not a JSON object with an integer \"step\"", path.string(), line_number),
              "remove that line, or move the file away; the run goes on without it");
  return json["step"].get<int64_t>();
}

// Bytes of the leading lines whose step is at most `last_step`. What has no line end was torn by a crash.
uintmax_t bytes_up_to(int64_t last_step, const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  CADRE_CHECK(file.is_open(), fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)),
              "check that it is a file and that you may read it");
  uintmax_t bytes = 0;
  std::string line;
  for (int64_t number = 1; std::getline(file, line) && !file.eof(); ++number) {
    if (step_of(line, path, number) > last_step) break;
    bytes += line.size() + 1;
  }
  CADRE_CHECK(!file.bad(), fmt::format("cannot read {}: {}", path.string(), std::strerror(errno)),
              "check the disk, or move the file away; the run goes on without it");
  return bytes;
}

void cut_back(const fs::path& path, int64_t last_step) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  fs::resize_file(path, bytes_up_to(last_step, path), error);
  CADRE_CHECK(!error, fmt::format("cannot shorten {}: {}", path.string(), error.message()),
              "check that you may write to it");
}

// A lost line of text must not stop a run: what a terminal or a pipe does not take is dropped.
void print(const std::string& line) {
  static_cast<void>(std::fputs((line + '\n').c_str(), stdout));
  static_cast<void>(std::fflush(stdout));
}

}  // namespace

std::string step_line(const StepRecord& record) {
  const GlobalStep& global = record.global;
  const std::string steps = fmt::format("{}", record.steps);
  const std::string line =
      fmt::format("step {:>{}}/{} | loss {:.4f} | norm {:.2f} | lr {:.2e} | {:.1f} ms | {} tok/s | wait {}",
                  record.step, steps.size(), steps, global.loss, record.grad_norm, record.learning_rate, record.step_ms,
                  short_number(tokens_per_second(record)), wait_text(global));
  return global.expert_counts.empty() ? line : line + balance_text(record);
}

std::string step_json(const StepRecord& record) {
  const GlobalStep& global = record.global;
  const BalanceFigures experts = global.expert_balance();
  const BalanceFigures devices = balance_figures(global.device_slots);
  const Json json = {{"step", record.step},
                     {"loss", global.loss},
                     {"balance_loss", global.balance_loss},
                     {"grad_norm", record.grad_norm},
                     {"lr", record.learning_rate},
                     {"step_ms", record.step_ms},
                     {"balance_ms", record.balance_ms},
                     {"polls_per_exchange", record.polls.polls_per_exchange()},
                     {"poll_ms", static_cast<double>(record.polls.nanoseconds) * 1e-6},
                     {"tokens_per_s", tokens_per_second(record)},
                     {"tokens", global.num_tokens},
                     {"drop_rate", global.drop_rate()},
                     {"dropped", global.slots_dropped},
                     {"crossing_bytes", global.crossing_bytes},
                     {"between_hosts_bytes", global.between_hosts_bytes},
                     {"expert_cv", experts.cv},
                     {"expert_max_vio", experts.max_vio},
                     {"expert_min", experts.min},
                     {"expert_max", experts.max},
                     {"expert_mean", experts.mean},
                     {"expert_entropy", experts.entropy},
                     {"dead_experts", experts.dead},
                     {"device_cv", devices.cv},
                     {"device_max_over_mean", devices.max_vio + 1.0},
                     {"wait_ms_max", max_of(global.device_wait_ms)},
                     {"wait_ms_mean", mean_of(global.device_wait_ms)},
                     {"step_ms_max", max_of(global.device_step_ms)},
                     {"layers", layers_json(record)}};
  return json.dump();
}

RunLog::RunLog(const fs::path& out, int64_t resumed_step, int64_t log_every)
    : path_(out / "metrics.jsonl"), log_every_(log_every), bar_(resumed_step) {
  if (resumed_step > 0) cut_back(path_, resumed_step);
  metrics_.open(path_, std::ios::binary | (resumed_step > 0 ? std::ios::app : std::ios::trunc));
  if (!metrics_) {
    throw Error(ErrorKind::environment, fmt::format("cannot open {}: {}", path_.string(), std::strerror(errno)),
                "check that the folder exists and that you may write to it");
  }
}

void RunLog::step(const StepRecord& record) {
  append(step_json(record));
  alarm_.add(record.global);
  if (record.step == 1 || record.step == record.steps || record.step % log_every_ == 0) note(step_line(record));
  bar_.update(record.step, record.steps);
}

void RunLog::evaluation(int64_t step, double validation_loss) {
  append(Json{{"step", step}, {"validation_loss", validation_loss}}.dump());
  note(fmt::format("step {} | validation loss {:.4f}", step, validation_loss));
}

void RunLog::note(const std::string& line) {
  bar_.clear();
  print(line);
}

void RunLog::summary() {
  const std::string warning = alarm_.note();
  if (!warning.empty()) note(warning);
}

void RunLog::append(const std::string& json) {
  metrics_ << json << '\n' << std::flush;
  if (!metrics_) {
    throw Error(ErrorKind::environment, fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)),
                "free some space, raise the quota or file-size limit (ulimit -f), or choose another out=");
  }
}

}  // namespace cadre
