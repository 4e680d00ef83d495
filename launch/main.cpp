// SPDX-License-Identifier: Apache-2.0
// The `cadre` program: README.md lists its commands and exit codes.
#include <string>
#include <vector>

#include "launch/command_line.hpp"

int main(int argc, char** argv) {
  std::set_terminate(cadre::terminate_job);
  const cadre::Job job(&argc, &argv);
  try {
    job.check_launcher();
    const std::vector<std::string> words(argv + 1, argv + argc);
    run_command_line({cadre::train_command(), cadre::eval_command(), cadre::generate_command(),
                      cadre::inspect_command(), cadre::bench_command(), cadre::plan_command()},
                     words, job);
  } catch (...) {
    return job.fail(cadre::as_error(std::current_exception()));
  }
  return 0;
}
