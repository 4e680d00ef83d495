// SPDX-License-Identifier: Apache-2.0
#include "tests/support/ranks.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "comm/transport/local.hpp"

namespace cadre::test {
namespace {

MpiSession* session_of_test = nullptr;
JobContext* job_of_test = nullptr;

}  // namespace

void use(MpiSession& session, JobContext& job) {
  session_of_test = &session;
  job_of_test = &job;
}

bool runs_under_mpi() {
  const char* flag = std::getenv("CADRE_TEST_MPI");
  return flag != nullptr && std::string_view(flag) == "1";
}

int num_hosts() {
  const char* hosts = std::getenv("CADRE_TEST_HOSTS");
  return hosts != nullptr ? std::stoi(hosts) : 1;
}

void on_ranks(const std::function<void(Communicator&)>& body, const std::vector<int>& rank_counts) {
  if (runs_under_mpi()) {
    Communicator world(session_of_test->make_world(*job_of_test), "world");
    const bool wanted = std::find(rank_counts.begin(), rank_counts.end(), world.size()) != rank_counts.end();
    if (wanted) body(world);
    return;
  }
  for (const int num_ranks : rank_counts) {
    SCOPED_TRACE(testing::Message() << num_ranks << " thread ranks");
    run_local_ranks(num_ranks, [&](std::unique_ptr<Transport> transport) {
      Communicator world(std::move(transport), "world");
      body(world);
    });
  }
}

void on_one_rank(const std::function<void(Communicator)>& body) {
  run_local_ranks(1, [&](std::unique_ptr<Transport> transport) { body(Communicator(std::move(transport), "alone")); });
}

}  // namespace cadre::test
