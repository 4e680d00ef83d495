// SPDX-License-Identifier: Apache-2.0
// Dies on rank 1 in the way that its argument names; rank 0 waits for it. For crash_test.sh.
#include <mpi.h>

#include <array>
#include <csignal>
#include <cstring>
#include <string_view>
#include <thread>

#include "comm/base/trace.hpp"
#include "launch/job.hpp"

namespace cadre {
namespace {

[[gnu::noinline]] void die_of(std::string_view cause, const Communicator& world) {
  if (cause == "terminate") {
    std::thread([] { throw Error(ErrorKind::internal, "nobody catches this"); }).join();
  } else if (cause == "segv") {
    static_cast<void>(std::raise(SIGSEGV));
  } else if (cause == "mpi") {
    std::array<std::byte, 4> bytes{};
    Request request = world.transport().send(bytes, 0, -5);  // a tag that MPI refuses
    wait(request);
  }
}

void run(std::string_view cause, const Communicator& world) {
  world.job().tracer().switch_to({.step = 7, .phase = "experts"});
  if (world.rank() == 1) die_of(cause, world);
  Request together = world.barrier();
  wait(together);
}

}  // namespace
}  // namespace cadre

int main(int argc, char** argv) {
  std::set_terminate(cadre::terminate_job);
  const cadre::Job job(&argc, &argv, /*always_mpi=*/false);
  cadre::report_crashes();
  try {
    job.on_ranks(0, [&](const cadre::Communicator& world) { cadre::run(argv[1], world); });
  } catch (...) {
    return job.fail(cadre::as_error(std::current_exception()));
  }
  return 0;
}
