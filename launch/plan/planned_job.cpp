// SPDX-License-Identifier: Apache-2.0
#include "launch/plan/planned_job.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {

Command planned_job_command(std::string name, std::string summary, PlannedJob& job, std::vector<Field> own) {
  std::vector<Field> options = {{"ranks", &job.ranks, between(1, 1 << 20), "ranks of the job"},
                                {"hosts", &job.hosts, at_least(1), "hosts that they share evenly"}};
  std::ranges::move(own, std::back_inserter(options));
  options.push_back({"json", &job.json, any(), "also write the result to this file, as JSON"});
  return {.name = std::move(name),
          .summary = std::move(summary),
          .arguments = {{"RUN.toml", &job.run_file, any(), "run file; examples are in launch/configs"}},
          .overrides = &job.overrides,
          .options = std::move(options)};
}

Command timed_job_command(std::string name, std::string summary, TimedJob& job, std::vector<Field> own) {
  std::vector<Field> options = {
      {"cluster", &job.cluster, any(), "file of the machine, from cadre plan cluster"},
      {"loads", &job.loads, any(), "folder of a run whose expert loads are assumed; empty: even loads"}};
  std::ranges::move(own, std::back_inserter(options));
  return planned_job_command(std::move(name), std::move(summary), job, std::move(options));
}

Topology topology_of(const PlannedJob& job) {
  CADRE_CHECK(job.ranks % job.hosts == 0,
              fmt::format("--hosts = {}, allowed: a divisor of --ranks = {}", job.hosts, job.ranks),
              "each host has the same number of ranks");
  return Topology::uniform(static_cast<int>(job.hosts), static_cast<int>(job.ranks / job.hosts));
}

Machine machine_of(const TimedJob& job) {
  CADRE_CHECK(!job.cluster.empty(), "--cluster is missing", "cadre plan cluster RUN.toml --out C.toml measures it");
  topology_of(job);
  Machine machine = read_machine(job.cluster);
  CADRE_CHECK(job.hosts == 1 || machine.network.beta_s > 0.0,
              fmt::format("--hosts = {}, and {} has no network: network.beta_s = 0", job.hosts, job.cluster),
              "measure on ranks of several hosts, or write its alpha_s and beta_s");
  return machine;
}

}  // namespace cadre
