// SPDX-License-Identifier: Apache-2.0
#include "comm/progress/progress_thread.hpp"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>

#include "comm/group/topology.hpp"
#include "comm/job/wait.hpp"

namespace cadre {
namespace {

cpu_set_t set_of_process() {
  cpu_set_t set;
  CPU_ZERO(&set);
  static_cast<void>(sched_getaffinity(0, sizeof(set), &set));
  return set;
}

std::vector<int> cpus_in(const cpu_set_t& set) {
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<size_t>(cpu), &set)) cpus.push_back(cpu);
  }
  return cpus;
}

// `sets`: the cpus that each rank may use.
SpareCpu spare_cpu_of(int rank, const Topology& topology, const std::vector<cpu_set_t>& sets, int threads) {
  const auto host_of = [&](int any) { return topology.host_of_rank[static_cast<size_t>(any)]; };
  const cpu_set_t& own = sets[static_cast<size_t>(rank)];
  int index = 0;
  int count = 0;
  for (int other = 0; other < topology.num_ranks(); ++other) {
    const cpu_set_t& others = sets[static_cast<size_t>(other)];
    cpu_set_t common;
    CPU_AND(&common, &own, &others);
    if (host_of(other) != host_of(rank) || CPU_COUNT(&common) == 0) continue;
    if (!CPU_EQUAL(&others, &own)) {
      return {std::nullopt, fmt::format("ranks {} and {} share some of their cpus", rank, other)};
    }
    if (other < rank) ++index;
    ++count;
  }
  const std::vector<int> cpus = cpus_in(own);
  const std::optional<int> cpu = spare_cpu(cpus, index, count, threads);
  if (cpu) return {cpu, ""};
  return {std::nullopt, fmt::format("rank {} is one of {} on {} cpus that compute with {} threads each: none is spare",
                                    rank, count, cpus.size(), threads)};
}

void drive(const std::stop_token& stop, Transport& transport, int cpu) {
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(static_cast<size_t>(cpu), &only);
  static_cast<void>(pthread_setaffinity_np(pthread_self(), sizeof(only), &only));  // works unpinned, too
  while (!stop.stop_requested()) transport.progress();
}

}  // namespace

ProgressThread::ProgressThread(Transport& transport, int cpu)
    : thread_([&transport, cpu](const std::stop_token& stop) { drive(stop, transport, cpu); }) {}

std::vector<int> cpus_of_process() { return cpus_in(set_of_process()); }

std::optional<int> spare_cpu(std::span<const int> cpus, int index, int count, int threads) {
  if (cpus.size() < static_cast<size_t>(count) * static_cast<size_t>(threads + 1)) return std::nullopt;
  return cpus[cpus.size() - 1 - static_cast<size_t>(index)];
}

SpareCpu find_spare_cpu(const Communicator& world, int threads) {
  const Topology topology = discover_topology(world);
  const std::vector<cpu_set_t> sets = wait(world.all_gather(set_of_process()));
  if (!world.transport().progresses_anywhere()) {
    return {std::nullopt, "this transport does not let a second thread drive it"};
  }
  // Every rank works it out for all of them, so that they agree.
  std::optional<int> own;
  for (int rank = 0; rank < world.size(); ++rank) {
    SpareCpu found = spare_cpu_of(rank, topology, sets, threads);
    if (!found.cpu) return found;
    if (rank == world.rank()) own = found.cpu;
  }
  return {own, ""};
}

}  // namespace cadre
