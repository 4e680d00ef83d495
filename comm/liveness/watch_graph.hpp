// SPDX-License-Identifier: Apache-2.0
// Which processes of a job watch each other. Ranks r and (r + 2^k) mod P hold a connection, for every 2^k < P; jobs of up
// to 11 ranks connect every pair. P = 16, rank 0: 1 2 4 8 12 14 15.
//
// A rank has at most 2 log2(P) connections. The graph is vertex-transitive, so with d connections a rank any
// 2 (d + 1) / 3 - 1 deaths leave the other ranks connected (M. E. Watkins, Connectivity of transitive graphs, 1970): 15 of
// 4,096 ranks.
#pragma once

#include <vector>

namespace cadre {

// The ranks that share a connection with `rank`, ascending. Symmetric: if a is among those of b, b is among those of a.
std::vector<int> watch_neighbours(int rank, int num_ranks);

}  // namespace cadre
