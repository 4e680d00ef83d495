// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/run_log.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>
#include <optional>
#include <random>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;  // keys stay in the order of writing

constexpr const char* kMetricsFile = "metrics.jsonl";
// With log.every = 0.
constexpr int64_t kFirstLines = 10;
constexpr std::chrono::seconds kLineInterval(5);

double tokens_per_second(const StepRecord& record) {
  return static_cast<double>(record.global.num_tokens) / (record.step_ms * 1e-3);
}

double sum_over_ranks(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

double max_of(const std::vector<double>& values) { return values.empty() ? 0.0 : std::ranges::max(values); }

double mean_of_ranks(const std::vector<double>& values) {
  return values.empty() ? 0.0 : sum_over_ranks(values) / static_cast<double>(values.size());
}

// "812", "36.4k", "1.25M"
std::string short_number(double value) {
  if (value >= 1e6) return fmt::format("{:.2f}M", value * 1e-6);
  if (value >= 1e3) return fmt::format("{:.1f}k", value * 1e-3);
  return fmt::format("{:.0f}", value);
}

std::string wait_text(const GlobalStep& global, int digits) {
  const double step_ms = sum_over_ranks(global.device_step_ms);
  return step_ms > 0.0 ? fmt::format("{:.{}f}%", 100.0 * sum_over_ranks(global.device_wait_ms) / step_ms, digits) : "-";
}

std::string left_text(double seconds) { return fmt::format(" | {} left", clock_text(static_cast<int64_t>(seconds))); }

// "step  12/300 | loss 2.1034 | norm 0.81"
std::string step_text(const StepRecord& record) {
  const std::string steps = fmt::format("{}", record.steps);
  return fmt::format("step {:>{}}/{} | loss {:.4f} | norm {:.2f}", record.step, steps.size(), steps, record.global.loss,
                     record.grad_norm);
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

OrderedJson layers_json(const StepRecord& record) {
  OrderedJson layers = OrderedJson::array();
  for (size_t i = 0; i < record.global.expert_counts.size(); ++i) {
    const std::vector<int64_t>& counts = record.global.expert_counts[i];
    const BalanceFigures figures = balance_figures(counts);
    const BalanceFigures devices = balance_figures(record.global.layer_device_slots.at(i));
    layers.push_back({{"layer", record.moe_layers.at(i)},
                      {"expert_cv", figures.cv},
                      {"max_vio", figures.max_vio},
                      {"min", figures.min},
                      {"max", figures.max},
                      {"mean", figures.mean},
                      {"entropy", figures.entropy},
                      {"dead", figures.dead},
                      {"drop_rate", record.global.drop_rate(i)},
                      {"device_cv", devices.cv},
                      {"device_max_over_mean", devices.max_vio + 1.0},
                      {"counts", counts}});
  }
  return layers;
}

OrderedJson json_of(const std::optional<double>& value) { return value ? OrderedJson(*value) : OrderedJson(); }

std::string move_text(const Rebalance& rebalance) {
  if (rebalance.moved == 0) return "";
  return fmt::format(" | moved {}, {:.2f} -> {:.2f}", rebalance.moved, rebalance.before.value_or(0),
                     rebalance.after.value_or(0));
}

OrderedJson json_of(const StepRecord& record, const LineOrigin& origin) {
  const GlobalStep& global = record.global;
  const BalanceFigures experts = global.expert_balance();
  const BalanceFigures devices = balance_figures(global.device_slots);
  const BalanceFigures bytes = balance_figures(global.device_bytes);
  return {{"step", record.step},
          {"loss", global.loss},
          {"balance_loss", global.balance_loss},
          {"mtp_loss", global.mtp_loss},
          {"grad_norm", record.grad_norm},
          {"lr", record.learning_rate},
          {"step_ms", record.step_ms},
          {"balance_ms", record.balance_ms},
          {"save_ms", record.save_ms},
          {"skipped_steps", record.skipped_steps},
          {"polls_per_exchange", record.polls.polls_per_exchange()},
          {"poll_ms", static_cast<double>(record.polls.nanoseconds) * 1e-6},
          {"tokens_per_s", tokens_per_second(record)},
          {"tokens", global.num_tokens},
          {"drop_rate", global.drop_rate()},
          {"dropped", global.slots_dropped},
          {"rerouted", global.rerouted},
          {"crossing_bytes", global.crossing_bytes},
          {"between_hosts_bytes", global.between_hosts_bytes},
          {"device_bytes_min", bytes.min},
          {"device_bytes_max", bytes.max},
          {"device_bytes_mean", bytes.mean},
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
          {"wait_ms_mean", mean_of_ranks(global.device_wait_ms)},
          {"step_ms_max", max_of(global.device_step_ms)},
          {"time", origin.time},
          {"run", origin.run},
          {"tokens_so_far", record.tokens_so_far},
          {"moved_experts", record.rebalance.moved},
          {"refused_experts", record.rebalance.refused},
          {"moved_bytes", record.rebalance.bytes},
          {"rebalance_ms", record.rebalance.stall_ms},
          {"move_load_before", json_of(record.rebalance.before)},
          {"move_load_after", json_of(record.rebalance.after)},
          {"move_gain_ms", json_of(record.rebalance.gain_ms)},
          {"move_cost_ms", json_of(record.rebalance.cost_ms)},
          {"move_took_ms", json_of(record.rebalance.took_ms)},
          {"move_got_ms", json_of(record.rebalance.got_ms)},
          {"layers", layers_json(record)}};
}

// An evaluation belongs to what comes after the save of its step: a run that goes on from there makes it again.
std::optional<int64_t> step_of_line(const std::string& line) {
  const auto json = nlohmann::json::parse(line, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return std::nullopt;
  return json["step"].get<int64_t>() + (json.contains("validation_loss") ? 1 : 0);
}

double unix_time() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) * 1e-3;
}

// 16 hexadecimal digits. Nothing that is computed depends on it.
std::string new_run() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

// The run that wrote the file; empty where it does not say.
std::string run_in(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path, error)) return "";
  std::ifstream file(path);
  std::string run;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, /*cb=*/nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("run") || !json["run"].is_string()) continue;
    return json["run"].get<std::string>();
  }
  return "";
}

ProgressBar::Show show_of(const LogConfig& config) {
  if (config.progress == "auto") return ProgressBar::Show::automatic;
  return config.progress == "always" ? ProgressBar::Show::always : ProgressBar::Show::never;
}

}  // namespace

std::string step_line(const StepRecord& record, double left) {
  const GlobalStep& global = record.global;
  std::string line = step_text(record) + fmt::format(" | {:.0f} ms", record.step_ms);
  line += fmt::format(" | {} tok/s", short_number(tokens_per_second(record)));
  std::vector<std::string> more = {" | wait " + wait_text(global, 0)};
  if (!global.expert_counts.empty()) more.push_back(fmt::format(" | cv {:.2f}", global.expert_balance().cv));
  more.push_back(move_text(record.rebalance));
  if (left >= 0.0) more.push_back(left_text(left));
  // What is last matters most.
  size_t length = line.size();
  for (const std::string& part : more) length += part.size();
  for (const std::string& part : more) {
    const bool fits = length <= kLineWidth;
    if (fits) line += part;
    if (!fits) length -= part.size();
  }
  return line;
}

std::string wide_step_line(const StepRecord& record, double left) {
  const GlobalStep& global = record.global;
  std::string line =
      step_text(record) + fmt::format(" | lr {:.2e} | {:.1f} ms | {} tok/s | wait {}", record.learning_rate,
                                      record.step_ms, short_number(tokens_per_second(record)), wait_text(global, 1));
  if (record.save_ms > 0.0) line += fmt::format(" | save {:.1f} ms", record.save_ms);
  line += move_text(record.rebalance);
  if (record.rebalance.moved > 0) line += fmt::format(" in {:.1f} ms", record.rebalance.stall_ms);
  if (!global.expert_counts.empty()) line += balance_text(record);
  return left >= 0.0 ? line + left_text(left) : line;
}

std::string step_json(const StepRecord& record, const LineOrigin& origin) { return json_of(record, origin).dump(); }

RunLog::RunLog(const fs::path& out, int64_t resumed_step, const LogConfig& config)
    : config_(config),
      run_(resumed_step > 0 ? run_in(out / kMetricsFile) : std::string()),
      metrics_(out / kMetricsFile, resumed_step, step_of_line),
      done_before_(resumed_step),
      bar_(resumed_step, show_of(config)) {
  if (run_.empty()) run_ = new_run();
  tell_damage(metrics_);
  if (config.tensorboard) {
    std::ifstream file(out / "run.toml");
    const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    events_.emplace(out / "tensorboard", run_, unix_time(), resumed_step + 1, text);
  }
  if (config.metrics != "csv") return;
  table_.emplace(out / "metrics.csv", resumed_step);
  tell_damage(table_->file());
}

bool RunLog::prints(const StepRecord& record) {
  const Clock::time_point now = Clock::now();
  const bool is_due = config_.every > 0 ? record.step % config_.every == 0
                                        : num_printed_ < kFirstLines || now - last_printed_ >= kLineInterval;
  if (!is_due && record.step != 1 && record.step != record.steps) return false;
  ++num_printed_;
  last_printed_ = now;
  return true;
}

double RunLog::seconds_left(const StepRecord& record) const {
  const int64_t done = record.step - done_before_;
  if (done < 2 || record.step >= record.steps) return -1.0;
  const std::chrono::duration<double> elapsed = Clock::now() - begin_;
  return elapsed.count() / static_cast<double>(done) * static_cast<double>(record.steps - record.step);
}

void RunLog::step(const StepRecord& record) {
  const LineOrigin origin = {unix_time(), run_};
  append(json_of(record, origin));
  const double left = seconds_left(record);
  if (prints(record) || record.rebalance.moved > 0)
    note(config_.wide ? wide_step_line(record, left) : step_line(record, left));
  for (const std::string& warning : alarm_.add(record.step, record.global)) note(warning);
  bar_.update(record.step, record.steps);
}

void RunLog::evaluation(int64_t step, double validation_loss) {
  append(OrderedJson{{"step", step}, {"validation_loss", validation_loss}, {"time", unix_time()}, {"run", run_}});
  note(fmt::format("step {} | validation loss {:.4f}", step, validation_loss));
  if (std::isfinite(validation_loss)) return;
  note(fmt::format(
      "warning: the validation loss of step {} is not finite although training goes on: a weight that only held-out "
      "text uses, such as the embedding of a token, is not finite either, or the text makes an activation overflow",
      step));
}

void RunLog::note(const std::string& line) {
  bar_.clear();
  say(line + '\n');
}

void RunLog::summary() {
  const std::string warning = alarm_.note();
  if (!warning.empty()) note(warning);
}

void RunLog::tell_damage(const StepFile& file) {
  const std::vector<int64_t>& lines = file.damaged_lines();
  if (lines.empty()) return;
  note(fmt::format("warning: {}: {} damaged line{} of no step, the first is line {}: left as they are",
                   file.path().string(), lines.size(), lines.size() == 1 ? "" : "s", lines.front()));
}

// Once, and once more when it is over.
void RunLog::tell_trouble(StepFile& file, std::string& told) {
  const std::string path = file.path().string();
  if (file.take_replaced()) {
    note(fmt::format(
        "warning: {} was removed or replaced while the run goes on; from here on its lines stand in a new one", path));
  }
  if (file.trouble() == told) return;
  told = file.trouble();
  note(told.empty()
           ? fmt::format("note: {} has all its lines again", path)
           : fmt::format("warning: cannot write {}: {}; its lines wait in memory, the run goes on", path, told));
}

void RunLog::append(const OrderedJson& line) {
  metrics_.append(line.dump());
  tell_trouble(metrics_, metrics_trouble_);
  if (events_) events_->add(line);
  if (events_ && events_->trouble() && !std::exchange(told_events_, true)) {
    note(fmt::format("warning: cannot write {}: TensorBoard will miss steps; cadre report --tensorboard makes it anew",
                     events_->path().string()));
  }
  if (!table_) return;
  table_->add(line);
  tell_trouble(table_->file(), table_trouble_);
}

}  // namespace cadre
