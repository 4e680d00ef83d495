// SPDX-License-Identifier: Apache-2.0
// Reads the metrics.jsonl of a run back: what a report takes from it, the balance of experts and ranks.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace cadre {

struct StepBalance {
  int64_t step = 0;
  double expert_cv = 0;
  double device_cv = 0;
  double max_vio = 0;  // of the experts
  double drop_rate = 0;
};

struct LayerLoad {
  int layer = 0;
  std::vector<int64_t> counts;  // by expert
};

struct LoggedStep {
  StepBalance balance;
  std::vector<LayerLoad> layers;
};

// The steps of the file, in order; none where there is no file. Lines of evaluations are passed over, as is a last line
// that a crash tore; other damage is an error.
std::vector<LoggedStep> read_metrics(const std::filesystem::path& path);

}  // namespace cadre
