// SPDX-License-Identifier: Apache-2.0
// cadre plan schedule: the pipeline schedule of a run, verified and timed.
#include <fmt/core.h>
#include <nlohmann/json.hpp>

#include <memory>
#include <sstream>

#include "comm/base/check.hpp"
#include "launch/command.hpp"
#include "runtime/checkpoint/file.hpp"
#include "runtime/schedule/make_program.hpp"
#include "runtime/schedule/report.hpp"

namespace cadre {
namespace {

struct PlanScheduleArguments {
  std::string schedule = "dualpipe";
  int64_t ranks = 8;
  int64_t micro_batches = 20;
  int64_t ramp = 2;
  std::string cost = "F=1,B=2,Bi=1,W=1,FB=3";
  std::string json;
  std::string svg;
};

std::vector<Field> fields_of(Cost& cost) {
  return {{"F", &cost.forward, more_than(0), "a forward"},
          {"B", &cost.backward, more_than(0), "a full backward"},
          {"Bi", &cost.backward_input, more_than(0), "the gradient of the inputs alone"},
          {"W", &cost.backward_weight, more_than(0), "the gradient of the weights alone"},
          {"FB", &cost.overlapped, more_than(0), "a forward overlapped with a full backward"}};
}

// "F=1,FB=2.4"; what it leaves out keeps the unit cost.
Cost cost_from(const std::string& text) {
  Cost cost;
  const std::vector<Field> fields = fields_of(cost);
  std::vector<std::string> names;
  for (const Field& field : fields) names.push_back(field.name);
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const size_t equals = part.find('=');
    const std::string name = part.substr(0, equals);
    const auto field = std::ranges::find(fields, name, &Field::name);
    CADRE_CHECK(equals != std::string::npos && field != fields.end(),
                fmt::format("--cost {}: {} is not NAME=NUMBER with a NAME of F, B, Bi, W, FB", text, part),
                nearest_name_hint(name, names));
    assign_text(*field, part.substr(equals + 1), "--cost ");
  }
  return cost;
}

void run_plan_schedule(const PlanScheduleArguments& options, const Job& job) {
  if (job.rank() != 0) return;
  const Cost cost = cost_from(options.cost);
  Program program = make_program(options.schedule, static_cast<int>(options.ranks),
                                 static_cast<int>(options.micro_batches), static_cast<int>(options.ramp));
  const ScheduleReport report = report_schedule(std::move(program), cost);
  fmt::print("{}", report_text(report));
  if (!options.json.empty()) write_text_file(options.json, report_json(report).dump() + "\n");
  if (!options.svg.empty()) write_text_file(options.svg, report_svg(report));
}

}  // namespace

Command plan_schedule_command() {
  const auto options = std::make_shared<PlanScheduleArguments>();
  return {.name = "schedule",
          .summary = "prints the verified op lists of a pipeline schedule, with makespan, idle time and memory",
          .options = {{"schedule", &options->schedule, one_of(schedule_names()), "schedule"},
                      {"ranks", &options->ranks, between(1, 1024), "ranks of the pipeline"},
                      {"micro-batches", &options->micro_batches, between(1, 4096), "micro-batches of a step"},
                      {"ramp", &options->ramp, between(1, 1024), "micro-batches side by side at both ends; of pair"},
                      {"cost", &options->cost, any(), "costs of ops, in any unit of time"},
                      {"json", &options->json, any(), "also write the result to this file, as JSON"},
                      {"svg", &options->svg, any(), "also draw the schedule to this file"}},
          .more_help = [] { return fmt::format("Schedules, R the ranks:\n{}", schedule_summaries()); },
          .run = [options](const Job& job) { run_plan_schedule(*options, job); }};
}

}  // namespace cadre
