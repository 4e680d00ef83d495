// SPDX-License-Identifier: Apache-2.0
#include "launch/job.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"
#include "comm/base/trace.hpp"
#include "comm/transport/local.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {
namespace {

// What a launcher tells each process it starts. The variables of a Slurm allocation (SLURM_NTASKS) do not count: a
// batch script may well run one process.
struct Launcher {
  const char* size_variable;
  const char* rank_variable;
};
constexpr Launcher kSrun = {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"};
constexpr std::array<Launcher, 3> kLaunchers = {{
    {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
    {"PMI_SIZE", "PMI_RANK"},
    kSrun,
}};

struct Launched {
  const char* variable = nullptr;
  int size = 1;
  int rank = 0;
};

// What the launchers of MPI libraries set in each process they start, besides the variables above.
constexpr std::array<std::string_view, 8> kLauncherPrefixes = {
    "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "MPI_LOCAL", "MV2_COMM_WORLD_", "FLUX_JOB_", "SLURM_STEP_NUM", "PALS_"};

bool is_launched() {
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const auto begins = [&](std::string_view prefix) { return text.starts_with(prefix); };
    if (std::ranges::any_of(kLauncherPrefixes, begins)) return true;
  }
  return false;
}

// By the innermost launcher.
Launched launched_as() {
  for (const Launcher& launcher : kLaunchers) {
    const char* size = std::getenv(launcher.size_variable);
    const char* rank = std::getenv(launcher.rank_variable);
    if (size != nullptr) return {launcher.size_variable, std::atoi(size), rank == nullptr ? 0 : std::atoi(rank)};
  }
  return {};
}

Error not_connected(const Launched& launched) {
  return {ErrorKind::environment,
          fmt::format("the launcher started {} processes ({}), but MPI does not connect them", launched.size,
                      launched.variable),
          "use srun --mpi=pmix, or the mpirun of the MPI library that cadre was built with"};
}

std::string rank_text(int rank) { return fmt::format("rank {} on {}: ", rank, host_name()); }

// One line, whatever the text of a library looks like, in one write. A mistake shows its stack.
void print_error(const std::string& rank, const Error& error) {
  const std::string begin = fmt::format("cadre: error: {}", rank);
  std::string text = error.what();
  std::ranges::replace(text, '\n', ' ');
  std::string lines;
  for (size_t end = text.find(kNextError); end != std::string::npos; end = text.find(kNextError)) {
    lines += begin + text.substr(0, end) + '\n';
    text.erase(0, end + std::string_view(kNextError).size());
  }
  std::fflush(stdout);
  static_cast<void>(std::fputs((lines + begin + text + '\n' + noted_stack(error.text())).c_str(), stderr));
}

// Handlers of signals and of std::terminate have no argument to find it by.
JobContext* job_of_process = nullptr;

// For scripts, where the launcher has a code of its own whenever it ends a job: srun --kill-on-bad-exit gives 143.
void leave_code(int code) {
  if (const char* const file = std::getenv("CADRE_EXIT_FILE")) std::ofstream(file) << code << '\n';
}

// Every process of it, also where the launcher lets the others go on.
[[noreturn]] void end_job(int code) {
  leave_code(code);
  Liveness* const processes = job_of_process == nullptr ? nullptr : job_of_process->liveness();
  if (processes != nullptr) {
    if (mpi_survives_lost_ranks()) processes->end_job(code);
    processes->leave(/*job_ends=*/true);
  }
  abort_mpi_job(code);
}

constexpr int kFailureTag = 0;
constexpr std::chrono::seconds kNewsTime{2};    // for a lower rank that runs into the same error
constexpr std::chrono::seconds kAbortTime{10};  // for it to end the job

}  // namespace

Field ranks_option(int64_t& thread_ranks) {
  return {"ranks", &thread_ranks, between(0, 1024), "number of ranks as threads of this process; 0: the ranks of MPI"};
}

Job::Job(int* argc, char*** argv, bool always_mpi)
    : context_(std::make_unique<JobContext>()),
      mpi_(always_mpi || is_launched() ? std::make_unique<MpiSession>(argc, argv) : nullptr),
      failures_(make_world()) {
  start_liveness(*failures_);
  job_of_process = context_.get();
}

Job::~Job() {
  context_->set_liveness(nullptr);
  job_of_process = nullptr;
}

std::unique_ptr<Transport> Job::make_world() const {
  if (mpi_ != nullptr) return mpi_->make_world(*context_);
  return std::move(make_local_world(std::span(&context_, 1), std::make_shared<std::atomic<bool>>(false)).front());
}

void Job::check_launcher() const {
  const Launched launched = launched_as();
  if (size() == 1 && launched.size > 1) throw Error(not_connected(launched));
}

int Job::refuse_launcher() {
  const Launched launched = launched_as();
  const bool has_plugin = std::getenv("PMIX_RANK") != nullptr || std::getenv("PMI_RANK") != nullptr;
  if (launched.size <= 1 || launched.variable != kSrun.size_variable || has_plugin) return 0;
  const Error error = not_connected(launched);
  if (launched.rank == 0) print_error("", error);
  leave_code(exit_code(error.kind()));
  return exit_code(error.kind());
}

int Job::num_ranks(int64_t thread_ranks) const {
  CADRE_CHECK(thread_ranks == 0 || size() == 1,
              fmt::format("--ranks = {}, allowed: 0 in a job of {} processes", thread_ranks, size()),
              "--ranks makes thread ranks; omit it under mpirun and srun");
  return thread_ranks == 0 ? size() : static_cast<int>(thread_ranks);
}

void Job::on_ranks(int64_t thread_ranks, const std::function<void(Communicator)>& body) const {
  if (thread_ranks == 0) return body(Communicator(make_world(), "world"));
  run_local_ranks(*context_, num_ranks(thread_ranks),
                  [&](std::unique_ptr<Transport> transport) { body(Communicator(std::move(transport), "world")); });
}

// Most errors come to all ranks alike. So each one that fails tells those above it, and listens to those below it
// before it speaks.
bool Job::lower_rank_failed() const {
  // Given up at the end, so every message owns its byte.
  std::vector<Request> sent;
  std::vector<Request> received;
  const auto news = std::make_shared<std::byte>(std::byte{1});
  for (int peer = rank() + 1; peer < size(); ++peer) {
    sent.push_back(failures_->send(std::span(news.get(), 1), peer, kFailureTag));
    sent.back().keep(news);
  }
  const std::vector<int> lost = context_->liveness()->lost();
  for (int peer = 0; peer < rank(); ++peer) {
    if (std::ranges::binary_search(lost, peer)) continue;
    const auto heard = std::make_shared<std::byte>();
    received.push_back(failures_->receive(std::span(heard.get(), 1), peer, kFailureTag));
    received.back().keep(heard);
  }
  const auto end = std::chrono::steady_clock::now() + kNewsTime;
  while (!received.empty() && std::chrono::steady_clock::now() < end) {
    for (Request& request : sent) static_cast<void>(request.test());
    if (std::ranges::any_of(received, [](Request& request) { return request.test(); })) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

int Job::fail(const Error& error) const {
  const int code = exit_code(error.kind());
  if (size() == 1) {
    leave_code(code);
    if (launched_as().rank == 0) print_error("", error);
    if (context_->left_calls_behind()->load()) std::_Exit(code);
    return code;
  }
  try {
    if (lower_rank_failed()) std::this_thread::sleep_for(kAbortTime);
  } catch (const std::exception&) {
    // MPI itself is broken: the first error matters more.
  }
  const bool tell_rank = rank() > 0 || error.kind() != ErrorKind::input;
  print_error(tell_rank ? rank_text(rank()) : "", error);
  end_job(code);
}

std::string rank_of_process() {
  const Launched launched = launched_as();
  return launched.variable == nullptr ? "" : rank_text(launched.rank);
}

Error as_error(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& error) {
    return error;
  } catch (const std::bad_alloc&) {
    return {ErrorKind::environment, "out of memory", "use more ranks, smaller batches or a smaller model"};
  } catch (const std::filesystem::filesystem_error& error) {
    return {ErrorKind::environment, error.what(), "check that the path exists and its permissions"};
  } catch (const std::system_error& error) {  // fmt::print throws it where stdout cannot be written
    return {ErrorKind::environment, error.what(), "the reader of the pipe ended, or the disk is full"};
  } catch (const std::exception& error) {
    return {ErrorKind::internal, error.what()};
  } catch (...) {
    return {ErrorKind::internal, "an exception of unknown type"};
  }
}

Position position_of_process() {
  return job_of_process == nullptr ? Position{} : job_of_process->tracer().whereabouts().at;
}

void terminate_job() {
  const std::exception_ptr exception = std::current_exception();
  const Error error =
      exception ? as_error(exception) : Error(ErrorKind::internal, "std::terminate without an exception");
  print_error(rank_of_process(), error);
  if (noted_stack(error.text()).empty()) static_cast<void>(std::fputs(stack_trace().c_str(), stderr));
  end_job(exit_code(error.kind()));
}

namespace {

constexpr std::array kCrashes = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
constexpr size_t kStackBytes = size_t{1} << 18;
constexpr unsigned kReportSeconds = 10;

alignas(64) std::array<std::byte, kStackBytes> crash_stack;  // a stack that overflowed is no use
std::string rank_at_start;                                   // nothing may go wrong when it is printed

void say(const std::string& text) {
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) return;  // stderr is closed
}

// Does what a handler must not, and may therefore hang: then the alarm ends it. The handlers are gone by then, so that the
// signal ends the process when it is raised again.
extern "C" void report_crash(int signal) {
  std::signal(SIGALRM, SIG_DFL);
  alarm(kReportSeconds);
  say(fmt::format("cadre: error: {}signal {} ({}): {}\n", rank_at_start, signal, strsignal(signal),
                  position_of_process().describe()));
  say(stack_trace());
  static_cast<void>(raise(signal));
}

}  // namespace

void report_crashes() {
  rank_at_start = rank_of_process();
  stack_t stack{};
  stack.ss_sp = crash_stack.data();
  stack.ss_size = kStackBytes;
  static_cast<void>(sigaltstack(&stack, nullptr));
  struct sigaction action = {};
  action.sa_handler = report_crash;
  action.sa_flags = SA_ONSTACK | static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  for (const int signal : kCrashes) static_cast<void>(sigaction(signal, &action, nullptr));
}

}  // namespace cadre
