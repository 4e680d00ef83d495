// SPDX-License-Identifier: Apache-2.0
#include "comm/liveness/watch_graph.hpp"

#include <algorithm>

namespace cadre {
namespace {

constexpr int kAllPairs = 11;

}  // namespace

std::vector<int> watch_neighbours(int rank, int num_ranks) {
  std::vector<int> neighbours;
  for (int offset = 1; offset < num_ranks; offset = num_ranks <= kAllPairs ? offset + 1 : 2 * offset) {
    neighbours.push_back((rank + offset) % num_ranks);
    neighbours.push_back((rank - offset + num_ranks) % num_ranks);
  }
  std::ranges::sort(neighbours);
  neighbours.erase(std::ranges::unique(neighbours).begin(), neighbours.end());
  return neighbours;
}

}  // namespace cadre
