// SPDX-License-Identifier: Apache-2.0
// What a step will take: the program of each rank of a pipeline on its clock, and what follows after the passes. Pure. Times are
// in seconds; means over ranks unless said otherwise.
#pragma once

#include <vector>

#include "runtime/plan/step_shape.hpp"

namespace cadre {

struct RankPrediction {
  double compute_s = 0.0;
  double exposed_s = 0.0;  // waits while rows, sums or values are in flight
  double idle_s = 0.0;     // waits for other rows of the pipeline: the bubble
};

struct StepPrediction {
  double step_s = 0.0;
  double compute_s = 0.0;
  double communication_s = 0.0;  // exchanges, sums or values are in flight
  double hidden_s = 0.0;         // of it, while the rank computes
  double exposed_s = 0.0;        // step = compute + exposed + idle
  double idle_s = 0.0;
  double exchange_s = 0.0;  // dispatch and combine are in flight
  double exchange_hidden_s = 0.0;
  double skew_s = 0.0;               // of exposed: the busiest rank of an exchange is awaited
  double schedule_bubble_s = 0.0;    // idle time of the schedule itself, each op as long as it is alone
  double formula_bubble_s = 0.0;     // the same by its formula, for the mean stage
  double passes_s = 0.0;             // the passes and their sums, without what follows
  double serial_passes_s = 0.0;      // the same, one op after the other and nothing behind waits
  double tokens_per_s = 0.0;         // of all ranks
  double mfu = 0.0;                  // FLOPs of the model / peak
  std::vector<RankPrediction> rows;  // of the pipeline: one rank each
};

// No prediction of this step is shorter: each row begins when a first forward pass has come to it, works off all that its stages
// ask of it, and its last backward pass then goes on to the first stage; and a link sends one transfer after the other. Not simulated.
double least_step_s(const StepShape& shape);

// A step amid others: it begins with the new values of the step before. Not `overlap`: as parallel.overlap = false.
StepPrediction predict_step(const StepShape& shape, double peak_gflops, bool overlap = true);

}  // namespace cadre
