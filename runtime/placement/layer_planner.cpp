// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/layer_planner.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace cadre {
namespace {

// A peak this little above what is possible at best is worth no more search.
constexpr double kGoodEnough = 1.002;

// Copies with their final shares, the heaviest first, each to the least loaded of some ranks that has room and holds none.
class Packer {
 public:
  Packer(const ArrangementRules& rules, std::vector<int> ranks)
      : rules_(rules), ranks_(std::move(ranks)), experts_of_(ranks_.size()), load_(ranks_.size(), 0.0) {}

  // `copies` [experts] of the rules; those with none are not packed.
  void pack(const std::vector<int>& copies, Arrangement& into) {
    std::vector<int> items;
    for (int expert = 0; expert < rules_.num_experts(); ++expert) items.insert(items.end(), copies[expert], expert);
    const auto share = [&](int expert) { return rules_.weight[expert] / copies[expert]; };
    std::ranges::stable_sort(items, [&](int a, int b) { return share(a) > share(b); });
    for (const int expert : items) put(expert, share);
    for (size_t i = 0; i < ranks_.size(); ++i) {
      for (const int expert : experts_of_[i]) into.add(ranks_[i], expert);
    }
  }

 private:
  bool holds(size_t at, int expert) const {
    return std::ranges::find(experts_of_[at], expert) != experts_of_[at].end();
  }
  bool has_room(size_t at) const { return static_cast<int>(experts_of_[at].size()) < rules_.room(ranks_[at]); }

  template <class Wanted>
  std::optional<size_t> lightest(const Wanted& wanted) const {
    std::optional<size_t> best;
    for (size_t at = 0; at < ranks_.size(); ++at) {
      if (wanted(at) && (!best || load_[at] < load_[*best])) best = at;
    }
    return best;
  }

  // Where only ranks that hold the expert have room, one of another rank's makes way for it. There is one: a rank without
  // the expert is full, and has an expert more that the rank with room lacks.
  template <class Share>
  void put(int expert, const Share& share) {
    auto to = lightest([&](size_t at) { return has_room(at) && !holds(at, expert); });
    if (!to) {
      to = lightest([&](size_t at) { return !holds(at, expert); });
      const auto with_room = lightest([&](size_t at) { return has_room(at); });
      std::vector<int>& given = experts_of_[*to];
      const auto moved = std::ranges::find_if(given, [&](int other) { return !holds(*with_room, other); });
      experts_of_[*with_room].push_back(*moved);
      load_[*with_room] += share(*moved);
      load_[*to] -= share(*moved);
      given.erase(moved);
    }
    experts_of_[*to].push_back(expert);
    load_[*to] += share(expert);
  }

  const ArrangementRules& rules_;
  std::vector<int> ranks_;
  std::vector<std::vector<int>> experts_of_;
  std::vector<double> load_;
};

// Pairs of equal index ranges, the best first; result[a] = b.
template <class Value, class Allowed>
std::vector<int> matched(int count, const Value& value, const Allowed& allowed) {
  struct Pair {
    int64_t value;
    int a, b;
  };
  std::vector<Pair> pairs;
  for (int a = 0; a < count; ++a) {
    for (int b = 0; b < count; ++b) {
      if (allowed(a, b)) pairs.push_back({value(a, b), a, b});
    }
  }
  std::ranges::stable_sort(pairs, [](const Pair& x, const Pair& y) { return x.value > y.value; });
  std::vector<int> partner(static_cast<size_t>(count), -1);
  std::vector<bool> taken(static_cast<size_t>(count), false);
  for (const Pair& pair : pairs) {
    if (partner[pair.a] >= 0 || taken[pair.b]) continue;
    partner[pair.a] = pair.b;
    taken[pair.b] = true;
  }
  return partner;
}

}  // namespace

LayerPlanner::LayerPlanner(std::span<const double> weight, const PlacementSizes& sizes, bool groups_on_nodes)
    : sizes_(sizes), grouped_(groups_on_nodes) {
  if (!grouped_) sizes_.nodes = sizes_.groups = 1;
  rules_.weight = weight;
  rules_.first_slot = even_parts(sizes_.slots, sizes_.ranks);
  for (int rank = 0; rank < sizes_.ranks; ++rank) rules_.node_of_rank.push_back(rank / (sizes_.ranks / sizes_.nodes));
}

std::optional<LayerPlanner::Homes> LayerPlanner::homes_for(const ExpertSlots& slots) const {
  if (!grouped_) return Homes();
  Homes homes(rules_.weight.size(), -1);
  for (int rank = 0; rank < slots.num_ranks(); ++rank) {
    for (const int expert : slots.of_rank(rank)) {
      if (expert == ExpertSlots::kEmpty) continue;
      const int node = rules_.node_of_rank[rank];
      if (homes[expert] >= 0 && homes[expert] != node) return std::nullopt;
      homes[expert] = node;
    }
  }
  const int group_size = rules_.num_experts() / sizes_.groups;
  std::vector<int> groups_of_node(static_cast<size_t>(sizes_.nodes), 0);
  for (int expert = 0; expert < rules_.num_experts(); ++expert) {
    if (homes[expert] < 0 || homes[expert] != homes[expert - expert % group_size]) return std::nullopt;
    if (expert % group_size == 0) ++groups_of_node[homes[expert]];
  }
  if (std::ranges::count(groups_of_node, sizes_.groups / sizes_.nodes) != sizes_.nodes) return std::nullopt;
  return homes;
}

// No rank of a node can do less than their mean, nor less than an expert's load shared by all of them.
double LayerPlanner::good_enough(const Homes& homes) const {
  const int per_node = sizes_.ranks / sizes_.nodes;
  std::vector<double> of_node(static_cast<size_t>(sizes_.nodes), 0.0);
  double least = 0.0;
  for (int expert = 0; expert < rules_.num_experts(); ++expert) {
    of_node[homes.empty() ? 0 : homes[expert]] += rules_.weight[expert] / per_node;
    least = std::max(least, rules_.weight[expert] / per_node);
  }
  return kGoodEnough * std::max(least, std::ranges::max(of_node));
}

ExpertSlots LayerPlanner::fresh(std::span<const ExpertSlots> others, const ExpertSlots* homes_from,
                                double enough) const {
  std::vector<Arrangement> beginnings;
  std::vector<double> goals;
  const auto begin = [&](Arrangement beginning, const Homes& homes) {
    beginning.complete();
    beginning.fill();
    beginnings.push_back(std::move(beginning));
    goals.push_back(std::min(enough, good_enough(homes)));
  };
  const Homes homes = grouped_ ? homes_for(*homes_from).value() : Homes();
  begin(spread(homes), homes);
  for (const ExpertSlots& other : others) {
    if (const auto own = homes_for(other)) begin(taken_over(other, *own, nullptr), *own);
  }
  std::vector<size_t> order(beginnings.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, [&](size_t a, size_t b) { return beginnings[a].peak() < beginnings[b].peak(); });
  const Arrangement* best = nullptr;
  for (const size_t i : order) {
    beginnings[i].improve(goals[i]);
    beginnings[i].fill();
    if (best == nullptr || beginnings[i].peak() < best->peak() * (1.0 - kSamePeak)) best = &beginnings[i];
    if (best->peak() <= enough * (1.0 + kSamePeak)) break;
  }
  return best->slots();
}

ExpertSlots LayerPlanner::onward(const ExpertSlots& before, const ExpertSlots& plan, double goal) const {
  const Homes homes = homes_for(before).value_or(homes_for(plan).value_or(Homes()));
  Arrangement walk = taken_over(before, homes, &before);
  walk.complete();
  if (walk.peak() > goal || before.num_slots() < sizes_.slots) walk.fill();
  walk.improve(goal);
  return walk.slots();
}

ExpertSlots LayerPlanner::renumbered(const ExpertSlots& plan, const ExpertSlots& before) const {
  const int per_node = sizes_.ranks / sizes_.nodes;
  const auto common = [&](int a, int b) {
    const std::span<const int> now = plan.of_rank(a);
    const std::span<const int> old = before.of_rank(b);
    return std::ranges::count_if(
        now, [&](int expert) { return expert != ExpertSlots::kEmpty && std::ranges::find(old, expert) != old.end(); });
  };
  const auto common_of_nodes = [&](int a, int b) {
    int64_t sum = 0;
    for (int i = 0; i < per_node * per_node; ++i)
      sum += common(a * per_node + i / per_node, b * per_node + i % per_node);
    return sum;
  };
  std::vector<std::vector<int>> experts_of(static_cast<size_t>(sizes_.ranks));
  const std::vector<int> node_of = matched(sizes_.nodes, common_of_nodes, [](int /*a*/, int /*b*/) { return true; });
  for (int node = 0; node < sizes_.nodes; ++node) {
    const int from = node * per_node;
    const int to = node_of[node] * per_node;
    const std::vector<int> rank_of = matched(
        per_node, [&](int a, int b) { return common(from + a, to + b); },
        [&](int a, int b) { return rules_.room(from + a) == rules_.room(to + b); });
    for (int i = 0; i < per_node; ++i) {
      for (const int expert : plan.of_rank(from + i)) {
        if (expert != ExpertSlots::kEmpty) experts_of[to + rank_of[i]].push_back(expert);
      }
    }
  }
  return settle(rules_.first_slot, std::move(experts_of), rules_.num_experts(), &before);
}

// Copies for the busiest experts, on each node apart, then packed.
Arrangement LayerPlanner::spread(const Homes& homes) const {
  Arrangement result(rules_, homes, nullptr);
  const int per_node = sizes_.ranks / sizes_.nodes;
  for (int node = 0; node < sizes_.nodes; ++node) {
    std::vector<int> ranks(static_cast<size_t>(per_node));
    std::iota(ranks.begin(), ranks.end(), node * per_node);
    int slots = 0;
    for (const int rank : ranks) slots += rules_.room(rank);
    std::vector<int> copies(rules_.weight.size(), 0);
    for (int expert = 0; expert < rules_.num_experts(); ++expert) {
      if (homes.empty() || homes[expert] == node) copies[expert] = 1;
    }
    add_copies(copies, slots, per_node);
    Packer(rules_, ranks).pack(copies, result);
  }
  return result;
}

// One more for the expert with most load a copy, as long as there are slots and ranks for it.
void LayerPlanner::add_copies(std::vector<int>& copies, int slots, int most) const {
  for (int used = std::accumulate(copies.begin(), copies.end(), 0); used < slots; ++used) {
    int busiest = -1;
    const auto load = [&](int expert) { return rules_.weight[expert] / copies[expert]; };
    for (int expert = 0; expert < rules_.num_experts(); ++expert) {
      if (copies[expert] == 0 || copies[expert] == most) continue;
      if (busiest < 0 || load(expert) > load(busiest)) busiest = expert;
    }
    if (busiest < 0) return;
    ++copies[busiest];
  }
}

// What fits of the slots; experts with one copy are the last to be left out.
Arrangement LayerPlanner::taken_over(const ExpertSlots& slots, const Homes& homes, const ExpertSlots* before) const {
  Arrangement result(rules_, homes, before);
  const std::vector<int> copies = count_copies(slots, rules_.num_experts());
  for (int rank = 0; rank < sizes_.ranks; ++rank) {
    for (const bool only : {true, false}) {
      for (const int expert : slots.of_rank(rank)) {
        if (expert != ExpertSlots::kEmpty && (copies[expert] == 1) == only && result.may_hold(rank, expert)) {
          result.add(rank, expert);
        }
      }
    }
  }
  return result;
}

}  // namespace cadre
