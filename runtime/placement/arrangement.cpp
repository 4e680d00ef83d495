// SPDX-License-Identifier: Apache-2.0
#include "runtime/placement/arrangement.hpp"

#include <algorithm>
#include <set>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Less than this of the peak is a rounding and no gain.
constexpr double kLeastGain = 1e-12;

}  // namespace

Arrangement::Arrangement(const ArrangementRules& rules, std::vector<int> home, const ExpertSlots* before)
    : rules_(&rules),
      home_(std::move(home)),
      before_(before),
      experts_of_(static_cast<size_t>(rules.num_ranks())),
      ranks_of_(rules.weight.size()),
      holds_(experts_of_.size() * rules.weight.size(), 0),
      load_(experts_of_.size(), 0.0) {
  if (before == nullptr) return;
  was_.assign(holds_.size(), 0);
  for (int rank = 0; rank < rules.num_ranks(); ++rank) {
    for (const int expert : before->of_rank(rank)) {
      if (expert != ExpertSlots::kEmpty) was_[place(rank, expert)] = 1;
    }
  }
}

double Arrangement::peak() const { return std::ranges::max(load_); }

// What the copies of the expert add to their ranks, taken away (-1) or put back (+1).
void Arrangement::weigh_anew(int expert, double change) {
  for (const int rank : ranks_of_[expert]) load_[rank] += change * share(expert);
}

void Arrangement::add(int rank, int expert) {
  weigh_anew(expert, -1.0);
  experts_of_[rank].push_back(expert);
  ranks_of_[expert].push_back(rank);
  holds_[place(rank, expert)] = 1;
  weigh_anew(expert, 1.0);
}

void Arrangement::remove(int rank, int expert) {
  weigh_anew(expert, -1.0);
  std::erase(experts_of_[rank], expert);
  std::erase(ranks_of_[expert], rank);
  holds_[place(rank, expert)] = 0;
  weigh_anew(expert, 1.0);
}

// --- legal ----------------------------------------------------------------------------------------------------------

void Arrangement::complete() {
  std::vector<int> missing;
  for (int expert = 0; expert < rules_->num_experts(); ++expert) {
    if (copies(expert) == 0) missing.push_back(expert);
  }
  std::ranges::stable_sort(missing, [&](int a, int b) { return rules_->weight[a] > rules_->weight[b]; });
  for (const int expert : missing) {
    int rank = rank_for(expert);
    if (rank < 0) {
      // All ranks of the node are full, so one of their experts has two copies.
      for (int other = 0; other < rules_->num_ranks() && rank < 0; ++other) {
        const auto& held = experts_of_[other];
        const bool has_spare = std::ranges::any_of(held, [&](int e) { return copies(e) > 1; });
        if (at_home(other, expert) && has_spare) rank = other;
      }
      CADRE_ASSERT(rank >= 0);
      make_room(rank);
    }
    add(rank, expert);
  }
}

// The least loaded rank that can take a copy; -1: none.
int Arrangement::rank_for(int expert) const {
  int best = -1;
  for (int rank = 0; rank < rules_->num_ranks(); ++rank) {
    if (may_hold(rank, expert) && (best < 0 || load_[rank] < load_[best])) best = rank;
  }
  return best;
}

// Gives up the lightest of the copies that have another.
void Arrangement::make_room(int rank) {
  int lightest = -1;
  for (const int expert : experts_of_[rank]) {
    if (copies(expert) > 1 && (lightest < 0 || share(expert) < share(lightest))) lightest = expert;
  }
  remove(rank, lightest);
}

// --- better ---------------------------------------------------------------------------------------------------------

void Arrangement::fill() {
  std::set<int> closed;  // ranks that nothing fits on
  while (true) {
    int rank = -1;
    for (int other = 0; other < rules_->num_ranks(); ++other) {
      if (has_room(other) && !closed.contains(other) && (rank < 0 || load_[other] < load_[rank])) rank = other;
    }
    if (rank < 0) return;
    int heaviest = -1;
    const double most = peak() * (1.0 + kLeastGain);
    for (int expert = 0; expert < rules_->num_experts(); ++expert) {
      if (!may_hold(rank, expert) || (heaviest >= 0 && share(expert) <= share(heaviest))) continue;
      if (load_[rank] + rules_->weight[expert] / (copies(expert) + 1) <= most) heaviest = expert;
    }
    if (heaviest < 0) {
      closed.insert(rank);
    } else {
      add(rank, heaviest);
    }
  }
}

// Takes `expert` off the busy rank or adds a copy of it on `rank`, in the place of `other` if that is an expert.
struct Arrangement::Step {
  enum class Kind { none, move, swap, copy };
  Kind kind = Kind::none;
  int expert = -1;
  int rank = -1;
  int other = -1;
  double gain = 0.0;
};

void Arrangement::keep_better(const Step& step, Step& best) {
  if (step.gain > best.gain) best = step;
}

// What a step that leaves the ranks it touches at `peak` takes off the busy rank, for each copy that has to be sent.
double Arrangement::gain_a_copy(int busy, double peak, int sent) const {
  return (load_[busy] - peak) / (sent <= 0 ? 0.5 : sent);
}

// `expert` of the busy rank goes to `rank`, and one comes back if there is no room or it pays.
void Arrangement::consider_swaps(int busy, int expert, int rank, Step& best) const {
  const double given = share(expert);
  const int there = cost(rank, expert) - cost(busy, expert);
  if (has_room(rank)) {
    const double peak = std::max(load_[busy] - given, load_[rank] + given);
    keep_better({Step::Kind::move, expert, rank, -1, gain_a_copy(busy, peak, there)}, best);
  }
  for (const int other : experts_of_[rank]) {
    if (holds(busy, other) || !at_home(busy, other)) continue;
    const double change = given - share(other);
    const double peak = std::max(load_[busy] - change, load_[rank] + change);
    if (peak >= load_[busy]) continue;
    const int back = cost(busy, other) - cost(rank, other);
    keep_better({Step::Kind::swap, expert, rank, other, gain_a_copy(busy, peak, there + back)}, best);
  }
}

// The peak of the ranks whose load changes when `rank` gets a copy of `expert` in place of `replaced` (-1: an empty slot).
double Arrangement::peak_after_copy(int expert, int rank, int replaced) const {
  const double fewer = rules_->weight[expert] / (copies(expert) + 1);
  const double more = replaced < 0 ? 0.0 : rules_->weight[replaced] / (copies(replaced) - 1) - share(replaced);
  double peak = load_[rank] + fewer - (replaced < 0 ? 0.0 : share(replaced));
  for (const int holder : ranks_of_[expert]) {
    const bool works_for_replaced = replaced >= 0 && holds(holder, replaced);
    peak = std::max(peak, load_[holder] - (share(expert) - fewer) + (works_for_replaced ? more : 0.0));
  }
  if (replaced < 0) return peak;
  for (const int holder : ranks_of_[replaced]) {
    if (holder != rank && !holds(holder, expert)) peak = std::max(peak, load_[holder] + more);
  }
  return peak;
}

void Arrangement::consider_copies(int busy, int expert, int rank, Step& best) const {
  const auto consider = [&](int replaced) {
    const double peak = peak_after_copy(expert, rank, replaced);
    const int moved = cost(rank, expert) - (replaced < 0 ? 0 : cost(rank, replaced));
    keep_better({Step::Kind::copy, expert, rank, replaced, gain_a_copy(busy, peak, moved)}, best);
  };
  if (has_room(rank)) consider(-1);
  for (const int other : experts_of_[rank]) {
    if (copies(other) > 1) consider(other);
  }
}

void Arrangement::improve(double goal) {
  const int most_steps = 4 * rules_->first_slot.back() + 16;
  for (int i = 0; i < most_steps; ++i) {
    const int busy = static_cast<int>(std::ranges::max_element(load_) - load_.begin());
    if (load_[busy] <= goal) return;
    Step best;
    best.gain = kLeastGain * load_[busy];
    for (const int expert : experts_of_[busy]) {
      for (int rank = 0; rank < rules_->num_ranks(); ++rank) {
        if (holds(rank, expert) || !at_home(rank, expert)) continue;
        consider_swaps(busy, expert, rank, best);
        consider_copies(busy, expert, rank, best);
      }
    }
    if (best.kind == Step::Kind::none) {
      // A copy here of another expert, in place of one of its own that others can do without.
      for (int expert = 0; expert < rules_->num_experts(); ++expert) {
        if (!holds(busy, expert) && at_home(busy, expert)) consider_copies(busy, expert, busy, best);
      }
    }
    if (best.kind == Step::Kind::none) return;
    if (best.other >= 0) remove(best.rank, best.other);
    if (best.kind != Step::Kind::copy) remove(busy, best.expert);
    add(best.rank, best.expert);
    if (best.kind == Step::Kind::swap) add(busy, best.other);
  }
}

// --- the value ------------------------------------------------------------------------------------------------------

ExpertSlots Arrangement::slots() const {
  return settle(rules_->first_slot, experts_of_, rules_->num_experts(), before_);
}

}  // namespace cadre
