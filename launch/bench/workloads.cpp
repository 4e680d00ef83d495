// SPDX-License-Identifier: Apache-2.0
#include "launch/bench/workloads.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"

namespace cadre {
namespace {

constexpr double kHot = 16.0;

// How likely an expert is, in relative units.
double weight(Workload workload, int expert, int64_t iteration, const ExpertMap& map) {
  const int owner = map.owner(expert);
  switch (workload) {
    case Workload::hot_expert_set: return expert < std::max(1, map.num_experts() / 8) ? kHot : 1.0;
    case Workload::hot_rank: return owner == 0 ? kHot : 1.0;
    case Workload::spread_hot: return map.local_index(expert) == 0 ? kHot : 1.0;
    case Workload::zero_expert_rank: return owner == map.num_ranks() - 1 && map.num_ranks() > 1 ? 0.0 : 1.0;
    case Workload::rotating_hotspot: return owner == iteration % map.num_ranks() ? kHot : 1.0;
    default: return 1.0;
  }
}

int64_t num_tokens(Workload workload, const Draw& draw, int num_ranks) {
  if (workload == Workload::ragged_source && num_ranks > 1) return draw.tokens * draw.rank / (num_ranks - 1);
  if (workload == Workload::burst && draw.iteration % 4 != 0) return draw.tokens / 4;
  return draw.tokens;
}

}  // namespace

std::string_view name_of(Workload workload) {
  constexpr std::array<std::string_view, kNumWorkloads> kNames = {
      "W0 balanced",      "W1 hot expert set",   "W2 hot rank",         "W3 spread hot",
      "W4 ragged source", "W5 zero-expert rank", "W6 rotating hotspot", "W7 burst"};
  return kNames[static_cast<size_t>(workload)];
}

Workload workload_named(std::string_view name) {
  CADRE_ASSERT(name.size() == 2 && name[1] >= '0' && name[1] - '0' < kNumWorkloads);
  return static_cast<Workload>(name[1] - '0');
}

std::vector<int32_t> draw_routing(Workload workload, const Draw& draw, const ExpertMap& map) {
  const auto num_experts = static_cast<size_t>(map.num_experts());
  std::vector<double> log_weight;
  for (int expert = 0; expert < map.num_experts(); ++expert) {
    log_weight.push_back(std::log(weight(workload, expert, draw.iteration, map)));
  }
  const auto num_possible =
      std::count_if(log_weight.begin(), log_weight.end(), [](double w) { return std::isfinite(w); });
  CADRE_CHECK(
      draw.top_k <= num_possible,
      fmt::format("--top-k {} with {}, which allows only {} experts", draw.top_k, name_of(workload), num_possible),
      "lower --top-k, raise --experts, or omit the workload");
  std::vector<int32_t> ids;
  std::vector<double> keys(num_experts);
  std::vector<int32_t> order(num_experts);
  const int64_t count = num_tokens(workload, draw, map.num_ranks());
  for (int64_t token = 0; token < count; ++token) {
    const Random random(5, "workload",
                        static_cast<uint64_t>((draw.iteration * map.num_ranks() + draw.rank) * draw.tokens + token));
    for (size_t expert = 0; expert < num_experts; ++expert) {
      keys[expert] = log_weight[expert] - std::log(-std::log(random.uniform(expert) + 1e-12));
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + draw.top_k, order.end(),
                      [&](int32_t a, int32_t b) { return keys[a] > keys[b]; });
    ids.insert(ids.end(), order.begin(), order.begin() + draw.top_k);
  }
  return ids;
}

}  // namespace cadre
