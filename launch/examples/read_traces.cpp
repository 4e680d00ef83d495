// SPDX-License-Identifier: Apache-2.0
// Reads the traces of a run and prints, for each rank, the time of each phase in ms: what it computed, and what it waited.
//
//   cadre train RUN.toml trace.first_step=5 && ./read_traces runs/RUN
#include <cadre/runtime/observe/trace_file.hpp>

#include <cstdio>
#include <exception>
#include <map>
#include <string>

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: read_traces RUN_DIR\n");
    return 2;
  }
  try {
    for (const cadre::RankTrace& trace : cadre::read_traces(argv[1])) {
      std::map<std::string, double> compute, wait;
      for (const cadre::TracedEvent& event : trace.events) {
        const double ms = static_cast<double>(event.end_ns - event.begin_ns) * 1e-6;
        if (event.kind == cadre::TraceKind::compute) compute[event.phase] += ms;
        if (event.kind == cadre::TraceKind::wait) wait[event.phase] += ms;
      }
      for (const auto& [phase, ms] : compute)
        std::printf("rank %d compute %-28s %9.3f\n", trace.rank, phase.c_str(), ms);
      for (const auto& [phase, ms] : wait) std::printf("rank %d wait    %-28s %9.3f\n", trace.rank, phase.c_str(), ms);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "read_traces: %s\n", error.what());
    return 1;
  }
}
