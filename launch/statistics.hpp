// SPDX-License-Identifier: Apache-2.0
// Times of repeated work, over iterations and ranks, and the file they go to.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "comm/group/communicator.hpp"

namespace cadre {

struct Summary {
  double min = 0.0;
  double p50 = 0.0;
  double p95 = 0.0;
};

// Nearest-rank percentiles of at least one value.
Summary summarise(std::vector<double> values);

struct TimesOverRanks {
  Summary slowest;     // over iterations, of the slowest rank in each
  int worst_rank = 0;  // the one with the largest median
  double worst_rank_p50 = 0.0;
};

// Collective: every rank gives as many times. The same result on all ranks.
TimesOverRanks gather_times(const Communicator& world, const std::vector<double>& times);

// Writes `json` to `path`; throws when it cannot.
void write_json_report(const std::string& path, const nlohmann::json& json);

}  // namespace cadre
