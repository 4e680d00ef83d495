// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/run_log.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "comm/base/check.hpp"
#include "comm/base/console.hpp"

namespace cadre {
namespace {

constexpr int kBarWidth = 20;
constexpr const char* kEraseLine = "\r\x1b[K";

std::string clock_text(int64_t seconds) {
  return fmt::format("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

// A bar is not worth an error: what cannot be written is lost.
void write_stderr(const std::string& text) {
  static_cast<void>(std::fputs(text.c_str(), stderr));
  static_cast<void>(std::fflush(stderr));
}

}  // namespace

std::string progress_text(double fraction, int64_t elapsed_seconds, int64_t left_seconds) {
  const auto filled = static_cast<size_t>(fraction * kBarWidth);
  return fmt::format("[{:.<{}}] {:>3}% | {} elapsed | {} left", std::string(filled, '#'), kBarWidth,
                     static_cast<int>(fraction * 100.0), clock_text(elapsed_seconds), clock_text(left_seconds));
}

ProgressBar::ProgressBar(int64_t done_before)
    : enabled_(::isatty(STDERR_FILENO) == 1 && std::getenv("SLURM_JOB_ID") == nullptr), done_before_(done_before) {}

void ProgressBar::update(int64_t done, int64_t total) {
  if (!enabled_) return;
  if (done <= done_before_ || done >= total) return clear();
  const std::chrono::duration<double> elapsed = Clock::now() - begin_;
  const double left = elapsed.count() / static_cast<double>(done - done_before_) * static_cast<double>(total - done);
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  write_stderr(kEraseLine + progress_text(fraction, static_cast<int64_t>(elapsed.count()), static_cast<int64_t>(left)));
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  write_stderr(kEraseLine);
  drawn_ = false;
}

namespace {

namespace fs = std::filesystem;
using OrderedJson = nlohmann::ordered_json;  // keys stay in the order of writing

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

std::string wait_text(const GlobalStep& global) {
  const double step_ms = sum_over_ranks(global.device_step_ms);
  return step_ms > 0.0 ? fmt::format("{:.1f}%", 100.0 * sum_over_ranks(global.device_wait_ms) / step_ms) : "-";
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

OrderedJson json_of(const StepRecord& record) {
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
          {"layers", layers_json(record)}};
}

// An evaluation belongs to what comes after the save of its step: a run that goes on from there makes it again.
std::optional<int64_t> step_of_line(const std::string& line) {
  const auto json = nlohmann::json::parse(line, /*cb=*/nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) return std::nullopt;
  return json["step"].get<int64_t>() + (json.contains("validation_loss") ? 1 : 0);
}

}  // namespace

std::string step_line(const StepRecord& record) {
  const GlobalStep& global = record.global;
  const std::string steps = fmt::format("{}", record.steps);
  std::string line =
      fmt::format("step {:>{}}/{} | loss {:.4f} | norm {:.2f} | lr {:.2e} | {:.1f} ms | {} tok/s | wait {}",
                  record.step, steps.size(), steps, global.loss, record.grad_norm, record.learning_rate, record.step_ms,
                  short_number(tokens_per_second(record)), wait_text(global));
  if (record.save_ms > 0.0) line += fmt::format(" | save {:.1f} ms", record.save_ms);
  return global.expert_counts.empty() ? line : line + balance_text(record);
}

std::string step_json(const StepRecord& record) { return json_of(record).dump(); }

RunLog::RunLog(const fs::path& out, int64_t resumed_step, int64_t log_every, Metrics metrics)
    : metrics_(out / "metrics.jsonl", resumed_step, step_of_line), log_every_(log_every), bar_(resumed_step) {
  tell_damage(metrics_);
  if (metrics != Metrics::jsonl_and_csv) return;
  table_.emplace(out / "metrics.csv", resumed_step);
  tell_damage(table_->file());
}

void RunLog::step(const StepRecord& record) {
  append(json_of(record));
  if (record.step == 1 || record.step == record.steps || record.step % log_every_ == 0) note(step_line(record));
  for (const std::string& warning : alarm_.add(record.step, record.global)) note(warning);
  bar_.update(record.step, record.steps);
}

void RunLog::evaluation(int64_t step, double validation_loss) {
  append(OrderedJson{{"step", step}, {"validation_loss", validation_loss}});
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
  if (!table_) return;
  table_->add(line);
  tell_trouble(table_->file(), table_trouble_);
}

}  // namespace cadre
