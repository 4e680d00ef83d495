// SPDX-License-Identifier: Apache-2.0
// A program with all that is known of it before it runs, as text, JSON and a chart.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>

#include "runtime/schedule/verify.hpp"
#include "runtime/schedule/walk.hpp"

namespace cadre {

struct ScheduleReport {
  Program program;
  Cost cost;
  Footprint footprint;
  Simulation simulation;
  double formula = 0;  // idle time of a rank by the schedule's formula
};

// Verifies and simulates. Throws where verify does.
ScheduleReport report_schedule(Program program, const Cost& cost);

// The lists; makespan, idle time of each rank beside the formula, memory.
std::string report_text(const ScheduleReport& report);

// Schema: launch/schemas/schedule.schema.json.
nlohmann::json report_json(const ScheduleReport& report);

// A Gantt chart that needs no other file: a row a rank, colour by kind of op, darker for the second of two stages.
std::string report_svg(const ScheduleReport& report);

}  // namespace cadre
