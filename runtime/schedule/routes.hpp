// SPDX-License-Identifier: Apache-2.0
// Ways through the ranks: what Program::routes is made of.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

namespace cadre {

// 0 1 2 3
inline std::vector<int> route_down(int num_ranks) {
  std::vector<int> route(static_cast<size_t>(num_ranks));
  std::iota(route.begin(), route.end(), 0);
  return route;
}

// 3 2 1 0
inline std::vector<int> route_up(int num_ranks) {
  std::vector<int> route = route_down(num_ranks);
  std::ranges::reverse(route);
  return route;
}

// 0 1 2 3 3 2 1 0
inline std::vector<int> route_v(int num_ranks) {
  std::vector<int> route = route_down(num_ranks);
  route.insert(route.end(), route.rbegin(), route.rend());
  return route;
}

}  // namespace cadre
