// SPDX-License-Identifier: Apache-2.0
// The `cadre` program. README.md lists the exit codes.
#include <malloc.h>

#include <csignal>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "launch/command.hpp"
#include "launch/job.hpp"
#include "launch/reference.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/kernels.hpp"
#include "runtime/train/signals.hpp"

namespace {

// The vectors of a step, plans most of all, are as large as those of the step before. Given back to the system in
// between, their pages would be cleared and mapped anew each time: more than half of what making a plan costs.
void keep_freed_pages() {
  mallopt(M_MMAP_THRESHOLD, 16 << 20);
  mallopt(M_TRIM_THRESHOLD, 64 << 20);
}

cadre::Command plan_command() {
  return {.name = "plan",
          .summary = "works out beforehand what a run would do",
          .parts = {cadre::plan_cluster_command(), cadre::plan_dispatch_command(), cadre::plan_memory_command(),
                    cadre::plan_placement_command(), cadre::plan_schedule_command(), cadre::plan_search_command(),
                    cadre::plan_step_command()}};
}

std::vector<cadre::Command> all_commands() {
  return {cadre::train_command(),
          cadre::eval_command(),
          cadre::generate_command(),
          cadre::score_command(),
          cadre::tokenize_command(),
          cadre::experts_command(),
          cadre::export_command(),
          cadre::inspect_command(),
          cadre::bench_command(),
          plan_command(),
          cadre::report_command(),
          cadre::doctor_command(),
          cadre::reference_command(all_commands)};
}

}  // namespace

int main(int argc, char** argv) {
  keep_freed_pages();
  std::signal(SIGPIPE, SIG_IGN);  // a reader of the output that goes away is an error of a write, see say()
  // Before MPI starts, which takes 0.4 s: from here on a signal asks a training run to stop, and does not kill it.
  std::optional<cadre::StopSignals> signals;
  if (argc > 1 && std::string_view(argv[1]) == "train") signals.emplace();
  std::set_terminate(cadre::terminate_job);
  if (const int code = cadre::Job::refuse_launcher(); code != 0) return code;
  const bool reports_mpi = argc > 1 && std::string_view(argv[1]) == "doctor";
  const cadre::Job job(&argc, &argv, reports_mpi);
  cadre::report_crashes();
  try {
    cadre::apply_cpu_limit();
    job.check_launcher();
    const std::vector<std::string> words(argv + 1, argv + argc);
    run_command_line(all_commands(), words, job);
  } catch (...) {
    return job.fail(cadre::as_error(std::current_exception()));
  }
  return 0;
}
