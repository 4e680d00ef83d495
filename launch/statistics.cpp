// SPDX-License-Identifier: Apache-2.0
#include "launch/statistics.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>

#include "comm/job/wait.hpp"
#include "runtime/checkpoint/file.hpp"

namespace cadre {

Summary summarise(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto percentile = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    return values[std::max<size_t>(rank, 1) - 1];
  };
  return {values.front(), percentile(0.5), percentile(0.95)};
}

TimesOverRanks gather_times(const Communicator& world, const std::vector<double>& times) {
  const size_t count = times.size();
  const std::vector<double> all = wait(world.all_gather(times));

  TimesOverRanks result;
  std::vector<double> slowest(count, 0.0);
  for (int rank = 0; rank < world.size(); ++rank) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(rank * count);
    const double p50 = summarise({begin, begin + static_cast<std::ptrdiff_t>(count)}).p50;
    if (p50 > result.worst_rank_p50) {
      result.worst_rank = rank;
      result.worst_rank_p50 = p50;
    }
    for (size_t i = 0; i < count; ++i) slowest[i] = std::max(slowest[i], begin[static_cast<std::ptrdiff_t>(i)]);
  }
  result.slowest = summarise(slowest);
  return result;
}

void write_json_report(const std::string& path, const nlohmann::json& json) {
  write_text_file(path, json.dump(2) + "\n");
}

}  // namespace cadre
