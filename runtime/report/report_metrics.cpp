// SPDX-License-Identifier: Apache-2.0
#include "runtime/report/report_metrics.hpp"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

namespace cadre {
namespace {

constexpr size_t kMostBalanceRows = 1000;
constexpr size_t kMostLoadColumns = 48;
constexpr size_t kMostLoadLayers = 4;

void add_counts(const std::vector<int64_t>& counts, std::vector<int64_t>& sum) {
  sum.resize(std::max(sum.size(), counts.size()));
  std::ranges::transform(counts, sum, sum.begin(), std::plus());
}

// Largest / mean; 0 where there is none.
double max_over_mean(const std::vector<int64_t>& counts) {
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (total == 0) return 0;
  return static_cast<double>(std::ranges::max(counts) * static_cast<int64_t>(counts.size())) /
         static_cast<double>(total);
}

void add_training(const std::vector<LoggedStep>& of_report, OverlapReport& report) {
  double loss = 0;
  double num_tokens = 0;
  size_t num_losses = 0;
  for (const LoggedStep& step : of_report) {
    loss += step.loss.value_or(0);
    num_losses += step.loss ? 1 : 0;
    num_tokens += step.num_tokens.value_or(0);
  }
  if (num_losses > 0) report.loss = loss / static_cast<double>(num_losses);
  if (num_tokens == 0 || report.times.step <= 0) return;
  report.tokens_per_second = num_tokens / static_cast<double>(of_report.size()) / (report.times.step * 1e-3);
}

void add_load(const std::vector<LoggedStep>& of_report, OverlapReport& report) {
  std::map<int, std::vector<int64_t>> counts;
  std::map<int, std::pair<double, int>> imbalance;  // sum and number of max / mean
  for (const LoggedStep& step : of_report) {
    for (const LayerLoad& layer : step.layers) {
      add_counts(layer.counts, counts[layer.layer]);
      const double ratio = max_over_mean(layer.counts);
      if (ratio == 0) continue;
      imbalance[layer.layer].first += ratio;
      ++imbalance[layer.layer].second;
    }
  }
  for (auto& [layer, sum] : counts) report.expert_load.push_back({layer, std::move(sum)});
  for (LayerTimes& layer : report.layers) {
    const auto found = imbalance.find(layer.layer);
    if (found != imbalance.end()) layer.tokens_max_over_mean = found->second.first / found->second.second;
  }
}

// Of the whole run, consecutive steps summed so that few columns are left.
std::vector<LoadOverTime> load_over_time(const std::vector<LoggedStep>& metrics) {
  const size_t stride = (metrics.size() + kMostLoadColumns - 1) / kMostLoadColumns;
  std::map<int, LoadOverTime> layers;
  for (size_t i = 0; i < metrics.size(); ++i) {
    for (const LayerLoad& load : metrics[i].layers) {
      LoadOverTime& layer = layers[load.layer];
      layer.layer = load.layer;
      const int64_t first = metrics[i / stride * stride].balance.step;
      if (layer.first_steps.empty() || layer.first_steps.back() != first) {
        layer.first_steps.push_back(first);
        layer.counts.emplace_back();
      }
      add_counts(load.counts, layer.counts.back());
    }
  }
  std::vector<LoadOverTime> uneven;
  for (auto& [number, layer] : layers) uneven.push_back(std::move(layer));
  if (uneven.size() > kMostLoadLayers) {
    std::ranges::stable_sort(uneven, std::greater(), [](const LoadOverTime& layer) {
      double sum = 0;
      for (const std::vector<int64_t>& counts : layer.counts) sum += max_over_mean(counts);
      return sum / static_cast<double>(layer.counts.size());
    });
    uneven.resize(kMostLoadLayers);
    std::ranges::sort(uneven, {}, &LoadOverTime::layer);
  }
  return uneven;
}

std::vector<LoggedMove> moves_of(const std::vector<LoggedStep>& metrics) {
  std::vector<LoggedMove> moves;
  LoggedMove* last = nullptr;  // that moved
  for (size_t i = 0; i < metrics.size(); ++i) {
    if (metrics[i].move_got_ms && last != nullptr) last->got_ms = metrics[i].move_got_ms;
    if (!metrics[i].move) continue;
    moves.push_back(*metrics[i].move);
    if (moves.back().moved > 0 && i + 1 < metrics.size()) moves.back().load_after = metrics[i + 1].device_max_over_mean;
    const auto moved =
        std::ranges::find_if(moves.rbegin(), moves.rend(), [](const LoggedMove& one) { return one.moved > 0; });
    last = moved == moves.rend() ? nullptr : &*moved;
  }
  return moves;
}

}  // namespace

void add_metrics(const std::vector<LoggedStep>& metrics, const std::vector<int64_t>& steps, OverlapReport& report) {
  const size_t stride = metrics.size() / kMostBalanceRows + 1;
  for (size_t i = 0; i < metrics.size(); i += stride) report.balance.push_back(metrics[i].balance);
  std::vector<LoggedStep> of_report = metrics;
  std::erase_if(of_report, [&](const LoggedStep& one) { return !std::ranges::binary_search(steps, one.balance.step); });
  add_training(of_report, report);
  add_load(of_report, report);
  report.load_over_time = load_over_time(metrics);
  report.moves = moves_of(metrics);
}

}  // namespace cadre
