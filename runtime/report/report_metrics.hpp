// SPDX-License-Identifier: Apache-2.0
// What metrics.jsonl adds to an overlap report: loss, tokens a second, balance, and the load of experts.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/observe/metrics_file.hpp"
#include "runtime/report/overlap.hpp"

namespace cadre {

// `steps`: those of the report, ascending. The times and layers of `report` are known.
void add_metrics(const std::vector<LoggedStep>& metrics, const std::vector<int64_t>& steps, OverlapReport& report);

}  // namespace cadre
