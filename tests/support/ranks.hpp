// SPDX-License-Identifier: Apache-2.0
// Runs a test body on several ranks: on threads of this process at 1, 2, 3 and 4 ranks, or, when the test was started
// by mpirun (CADRE_TEST_MPI=1), once over MPI at the size of the job, if that is among
// the rank counts asked for. One body serves both.
#pragma once

#include <functional>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/transport/mpi.hpp"

namespace cadre::test {

inline const std::vector<int> kRankCounts = {1, 2, 3, 4};

bool runs_under_mpi();

// For main: what on_ranks makes worlds of under mpirun.
void use(MpiSession& session, JobContext& job);

// Hosts that the ranks are spread over, as many on each: CADRE_TEST_HOSTS, which hosts.sh tests set; else 1.
int num_hosts();

// A failed expectation inside the body counts for the test of the calling thread.
void on_ranks(const std::function<void(Communicator&)>& body, const std::vector<int>& rank_counts = kRankCounts);

// Runs a body with a rank that has no others, also under mpirun.
void on_one_rank(const std::function<void(Communicator)>& body);

}  // namespace cadre::test
