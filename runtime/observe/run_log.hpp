// SPDX-License-Identifier: Apache-2.0
// What a run says: one line and one JSON object a step, a progress bar on a terminal. Rank 0 only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "runtime/observe/step_metrics.hpp"

namespace cadre {

struct StepRecord {
  int64_t step = 0;   // 1 for the first
  int64_t steps = 0;  // of the whole run
  GlobalStep global;
  double learning_rate = 0.0;
  double grad_norm = 0.0;
  double step_ms = 0.0;         // of rank 0
  std::vector<int> moe_layers;  // the layer of each row of global.expert_counts
};

// "step   12/300 | loss 2.1034 | norm 0.81 | lr 3.00e-03 | 112.4 ms | 36.4k tok/s | experts cv 0.31 maxvio 0.74 dead 0
// |
//  ranks cv 0.08 max/mean 1.10 | drop 0.00%"
std::string step_line(const StepRecord& record);
// The schema is written down in launch/README.md.
std::string step_json(const StepRecord& record);

class RunLog {
 public:
  // Appends to out/metrics.jsonl, first cut back to steps below or at `resumed_step` (0: a fresh run starts empty).
  RunLog(const std::filesystem::path& out, int64_t resumed_step, int64_t log_every);

  void step(const StepRecord& record);
  void evaluation(int64_t step, double validation_loss);
  void note(const std::string& line);  // any other line

 private:
  std::ofstream metrics_;
  int64_t log_every_;
};

}  // namespace cadre
