// SPDX-License-Identifier: Apache-2.0
// An overlap report as text and JSON, and what changed between two of them.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "runtime/report/overlap.hpp"

namespace cadre {

// The line that sums a run up, what its words mean, tables by phase, layer and rank, and NOTE lines.
std::string report_text(const OverlapReport& report);

// What is far from its limit, and which option to change.
std::vector<std::string> report_notes(const OverlapReport& report);

// Of the schema launch/schemas/report.schema.json. 2: control traffic is no communication.
inline constexpr int kReportVersion = 2;
nlohmann::json report_json(const OverlapReport& report);

// Throws when `report`, read from `from`, is no report that diff_text understands.
void check_report(const nlohmann::json& report, const std::string& from);

// Two reports by their JSON. A phase has changed when its mean moved by more than twice the standard error over the ranks
// of both runs, and by 0.5 % of the step of the first.
nlohmann::json diff_json(const nlohmann::json& before, const nlohmann::json& after);
std::string diff_text(const nlohmann::json& diff);

}  // namespace cadre
