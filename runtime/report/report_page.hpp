// SPDX-License-Identifier: Apache-2.0
// An overlap report as one HTML file that needs nothing else: no network, no fonts, no other files. Tables and charts are
// in the markup; a script adds zoom and tooltips to the timeline, and without it all figures are there.
//
// Ids and data attributes are stable, for tests and for programs that read the page: the sections are #headline,
// #without-overlap, #timeline, #phases, #layers, #ranks, #stragglers, #bubble, #balance, #expert-load, #load-over-time; bars
// of the timeline have the class compute, wait or flight, a family of phases (experts, dispatch ...), data-rank, data-phase.
// Opened with ?check, the page measures its own layout and writes what it found into #self-check as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

// `report` by the schema cadre.report, version kReportVersion; `traces` in any order, none for a page without a timeline. Throws where
// `report` is something else.
std::string report_page(const nlohmann::json& report, const std::vector<RankTrace>& traces);

}  // namespace cadre
