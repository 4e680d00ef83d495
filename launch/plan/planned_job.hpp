// SPDX-License-Identifier: Apache-2.0
// The job that cadre plan memory, step and search work out, and its part of their command lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/base/fields.hpp"
#include "comm/group/topology.hpp"
#include "launch/command.hpp"
#include "runtime/config/run_config.hpp"
#include "runtime/placement/plan.hpp"
#include "runtime/plan/machine.hpp"
#include "runtime/plan/step_shape.hpp"

namespace cadre {

struct PlannedJob {
  std::string run_file;
  std::vector<std::string> overrides;
  int64_t ranks = 1;
  int64_t hosts = 1;
  std::string json;
};

// One whose time is predicted.
struct TimedJob : PlannedJob {
  std::string cluster;
  std::string loads;
};

// Takes RUN.toml, key=value, --ranks, --hosts, the options of the command itself, and --json.
Command planned_job_command(std::string name, std::string summary, PlannedJob& job, std::vector<Field> own);
// Takes --cluster and --loads too.
Command timed_job_command(std::string name, std::string summary, TimedJob& job, std::vector<Field> own);

// Throws ErrorKind::input where the ranks do not share the hosts evenly.
Topology topology_of(const PlannedJob& job);

// The machine that --cluster names. Throws ErrorKind::input as topology_of, or where it lacks the network of several hosts.
Machine machine_of(const TimedJob& job);

// How busy each expert was: of the folder of a run, its metrics.jsonl, or a JSON file of loads. Throws ErrorKind::input where
// that has none.
ExpertLoads read_loads(const std::string& argument);

// The same as factors of a run whose experts are cut over `group` ranks; an empty argument: even loads.
LoadSkew skew_of_loads(const std::string& argument, const RunConfig& config, int group, int ranks_a_host);

}  // namespace cadre
