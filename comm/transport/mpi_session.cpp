// SPDX-License-Identifier: Apache-2.0
#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string_view>
#include <thread>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/mpi.hpp"
#include "comm/transport/mpi_group.hpp"
#include "comm/transport/mpi_operations.hpp"

namespace cadre {
namespace {

int count_ranks_on_host(MPI_Comm world) {
  MPI_Comm host = MPI_COMM_NULL;
  CADRE_MPI(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host));
  int ranks = 1;
  CADRE_MPI(MPI_Comm_size(host, &ranks));
  CADRE_MPI(MPI_Comm_free(&host));
  return ranks;
}

bool is_thread_multiple() {
  int level = MPI_THREAD_SINGLE;
  CADRE_MPI(MPI_Query_thread(&level));
  return level == MPI_THREAD_MULTIPLE;
}

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv)
    : exceptions_(std::uncaught_exceptions()), process_(std::make_shared<MpiProcess>()) {
  int provided = MPI_THREAD_SINGLE;
  CADRE_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided));
  CADRE_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI gives less than MPI_THREAD_FUNNELED",
              "use an MPI library built with thread support");
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() > exceptions_) abort_mpi_job(exit_code(ErrorKind::internal));
  const bool lost_ranks = process_->generation > 0;
  if (lost_ranks || std::ranges::any_of(left_calls_behind_, [](const auto& left) { return left->load(); })) {
    // MPI_Finalize would wait for processes that are dead, or for threads that block.
    std::fflush(nullptr);
    std::_Exit(0);
  }
  static_cast<void>(MPI_Finalize());
}

void MpiSession::add_job(JobContext& job) {
  job.set_threads_for_calls(is_thread_multiple());
  left_calls_behind_.push_back(job.left_calls_behind());
}

std::unique_ptr<Transport> MpiSession::make_world(JobContext& job) {
  add_job(job);
  return make_mpi_transport(job, process_,
                            blocking_call<MPI_Comm>(job, "making the world", [process = process_](MPI_Comm& world) {
                              CADRE_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &world));
                              process->ranks_on_host = count_ranks_on_host(world);
                            }));
}

std::unique_ptr<Transport> MpiSession::make_survivors(JobContext& job, const std::vector<int>& ranks) {
  add_job(job);
  process_->generation.fetch_add(1);
  const auto make = [process = process_, ranks](MPI_Comm& survivors) {
    MPI_Group world = MPI_GROUP_NULL;
    MPI_Group group = MPI_GROUP_NULL;
    CADRE_MPI(MPI_Comm_group(MPI_COMM_WORLD, &world));
    CADRE_MPI(MPI_Group_incl(world, static_cast<int>(ranks.size()), ranks.data(), &group));
    // The same set of ranks is never tried twice, so its size tells this attempt from those before.
    CADRE_MPI(MPI_Comm_create_group(MPI_COMM_WORLD, group, static_cast<int>(ranks.size()), &survivors));
    CADRE_MPI(MPI_Group_free(&group));
    CADRE_MPI(MPI_Group_free(&world));
    process->ranks_on_host = count_ranks_on_host(survivors);
  };
  return make_mpi_transport(job, process_,
                            blocking_call<MPI_Comm>(job, "making a world of the ranks that are left", make));
}

MpiGroup make_mpi_group(JobContext& job, MPI_Comm comm) {
  int initialised = 0;
  CADRE_MPI(MPI_Initialized(&initialised));
  CADRE_CHECK(initialised != 0, "MPI is not initialised",
              "call MPI_Init_thread first; in Python: from mpi4py import MPI");
  CADRE_CHECK(comm != MPI_COMM_NULL, "the communicator is MPI_COMM_NULL", "pass one that this process belongs to");
  int joins_two_groups = 0;
  CADRE_MPI(MPI_Comm_test_inter(comm, &joins_two_groups));
  CADRE_CHECK(joins_two_groups == 0, "the communicator joins two groups", "pass an intracommunicator");
  job.set_threads_for_calls(is_thread_multiple());
  const auto process = std::make_shared<MpiProcess>();
  MPI_Comm copy = MPI_COMM_NULL;
  CADRE_MPI(MPI_Comm_dup(comm, &copy));
  process->ranks_on_host = count_ranks_on_host(copy);
  return {make_mpi_transport(job, process, copy), [process] { process->generation.fetch_add(1); }};
}

bool mpi_survives_lost_ranks() {
  const char* recovers = std::getenv("OMPI_MCA_orte_enable_recovery");
  return recovers != nullptr && std::string_view(recovers) != "0";
}

void abort_mpi_job(int code) {
#ifdef MPICH_VERSION
  // MPICH's launcher drops what a rank wrote just before it aborts.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
#endif
  int started = 0;
  if (MPI_Initialized(&started) == MPI_SUCCESS && started != 0) static_cast<void>(MPI_Abort(MPI_COMM_WORLD, code));
  std::_Exit(code);
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  CADRE_MPI(MPI_Get_library_version(text, &length));
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

std::string mpi_thread_level() {
  int level = MPI_THREAD_SINGLE;
  CADRE_MPI(MPI_Query_thread(&level));
  switch (level) {
    case MPI_THREAD_SINGLE: return "single";
    case MPI_THREAD_FUNNELED: return "funneled";
    case MPI_THREAD_SERIALIZED: return "serialized";
    default: return "multiple";
  }
}

}  // namespace cadre
