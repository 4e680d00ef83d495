// SPDX-License-Identifier: Apache-2.0
#include "launch/plan/grid_search.hpp"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/group/topology.hpp"
#include "launch/plan/memory.hpp"
#include "launch/plan/planned_job.hpp"
#include "runtime/observe/process.hpp"
#include "runtime/plan/row_roles.hpp"
#include "runtime/schedule/make_program.hpp"

namespace cadre {
namespace {

// Sums of the same terms in another order differ by less.
constexpr double kRounding = 1e-9;

std::vector<int64_t> divisors_of(int64_t number, int64_t most) {
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d <= std::min(number, most); ++d) {
    if (number % d == 0) divisors.push_back(d);
  }
  return divisors;
}

class Searcher {
 public:
  explicit Searcher(const GridSearch& search) : search_(search), topology_(search.topology) {}

  FoundGrids run() {
    const ModelConfig& model = search_.config.model;
    for (const int64_t pipeline : divisors_of(topology_.num_ranks(), model.num_hidden_layers)) {
      for (const int64_t expert : divisors_of(topology_.num_ranks() / pipeline, model.n_routed_experts)) {
        RunConfig grid = search_.config;
        grid.parallel.pipeline = pipeline;
        grid.parallel.expert = expert;
        grid.exchange.strategy = "auto";
        consider_all(grid);
      }
    }
    found_.fitting = static_cast<int64_t>(entries_.size());
    simulate_fastest();
    for (Ranked& one : fastest_) {
      if (one.candidate.bytes == 0) one.candidate.bytes = *bytes_of(one.candidate.config);
      found_.fastest.push_back(std::move(one.candidate));
    }
    return std::move(found_);
  }

 private:
  // What may be among the fastest.
  struct Entry {
    RunConfig config;
    StepShape shape;
    size_t bytes = 0;  // 0: not planned yet
    double least_s = 0.0;
    size_t number = 0;
  };
  struct Ranked {
    GridCandidate candidate;
    size_t number;
  };

  // Fewer micro-batches are larger, so that none fits where more did not.
  void consider_all(RunConfig grid) {
    std::set<std::string> too_large;
    for (const int64_t micro_batches : micro_batches_of(grid)) {
      grid.train.micro_batches = micro_batches;
      for (const std::string& schedule : possible_schedules(grid)) {
        grid.parallel.schedule = schedule;
        if (too_large.contains(schedule) && !search_.exhaustive) {
          found_.too_large += can_run(grid) ? 1 : 0;
        } else if (!consider(grid)) {
          too_large.insert(schedule);
        }
      }
    }
  }

  // Descending; each gives every rank of a row a sequence, but for the number that the configuration says.
  std::vector<int64_t> micro_batches_of(const RunConfig& grid) const {
    const int64_t given = search_.config.train.micro_batches;
    if (search_.keeps_micro_batches) return {given};
    const int64_t most = grid.train.batch * grid.parallel.pipeline / topology_.num_ranks();
    std::vector<int64_t> counts;
    for (const int64_t count : {4 * given, 2 * given, given, given / 2, given / 4}) {
      if (count == given || (count > 0 && count <= most)) counts.push_back(count);
    }
    return counts;
  }

  // Whether it is not too large.
  bool consider(RunConfig config) {
    config.train.recompute = "none";
    if (!can_run(config)) return true;
    if (search_.limit_gib <= 0.0) {
      add(std::move(config), 0);
      return true;
    }
    RunConfig sharded = config;
    const std::optional<bool> fits_whole = add_fitting(config);
    if (!fits_whole || (*fits_whole && config.train.recompute == "none")) return true;
    sharded.parallel.shard_gradients = true;
    const bool is_other = !config.parallel.shard_gradients && can_run(sharded);
    const bool fits_sharded = is_other && add_fitting(sharded).value_or(false);
    if (*fits_whole || fits_sharded) return true;
    ++found_.too_large;
    return false;
  }

  // Whether it fits with some recomputing, which `config` has then. None where it cannot run.
  std::optional<bool> add_fitting(RunConfig& config) {
    const std::optional<size_t> bytes = fit(config);
    if (!bytes) return std::nullopt;
    if (!fits(static_cast<double>(*bytes))) return false;
    add(config, *bytes);
    return true;
  }

  void add(RunConfig config, size_t bytes) {
    StepShape shape = shape_step(config, topology_, search_.machine, skew(static_cast<int>(config.parallel.expert)));
    const double least_s = least_step_s(shape);
    entries_.push_back({std::move(config), std::move(shape), bytes, least_s, entries_.size()});
  }

  bool can_run(const RunConfig& config) const {
    try {
      check(config, topology_.num_ranks());
      return true;
    } catch (const Error&) {
      return false;  // the model, the batch or the ranks allow no such grid
    }
  }

  // With the least recomputing that fits, or with all; its bytes, or less than these where that is enough to say that it does not
  // fit. None where it cannot run.
  std::optional<size_t> fit(RunConfig& config) const {
    const Grid grid = Grid::make(topology_.num_ranks(), static_cast<int>(config.parallel.pipeline),
                                 static_cast<int>(config.parallel.expert));
    const double least = least_bytes(config, grid, program_of(config));
    if (!fits(least) && !search_.exhaustive) return static_cast<size_t>(least);
    std::optional<size_t> bytes;
    for (const char* recompute : {"none", "activations", "mla_up", "attention", "every:2", "layer"}) {
      if (std::string_view(recompute) == "mla_up" && !has_latent_attention(config.model)) continue;
      config.train.recompute = recompute;
      bytes = bytes_of(config);
      if (!bytes || fits(static_cast<double>(*bytes))) break;
    }
    return bytes;
  }

  // Or less, where that does not fit.
  std::optional<size_t> bytes_of(const RunConfig& config) const {
    try {
      const double least = search_.exhaustive ? 0.0 : least_bytes_of_largest(config, topology_);
      if (!fits(least)) return static_cast<size_t>(least);
      return plan_of_largest(config, topology_).plan.total_bytes();
    } catch (const Error&) {
      return std::nullopt;
    }
  }

  bool fits(double bytes) const { return search_.limit_gib <= 0.0 || bytes <= search_.limit_gib * 1024.0 * kMiB; }

  const LoadSkew& skew(int group) {
    const auto found = skews_.find(group);
    if (found != skews_.end()) return found->second;
    return skews_
        .emplace(group,
                 skew_of_loads(search_.loads, search_.config, group, topology_.num_ranks() / topology_.num_hosts()))
        .first->second;
  }

  // In the order of their bounds, until none that is left can be among the fastest.
  void simulate_fastest() {
    std::ranges::stable_sort(entries_, {}, &Entry::least_s);
    for (Entry& entry : entries_) {
      const bool is_full = fastest_.size() == search_.wanted;
      const bool is_slower = is_full && entry.least_s * (1.0 - kRounding) > fastest_.back().candidate.step.step_s;
      if (is_slower && !search_.exhaustive) break;
      ++found_.simulated;
      StepPrediction step = predict_step(entry.shape, search_.machine.peak_gflops(), entry.config.parallel.overlap);
      rank({{std::move(entry.config), std::move(step), entry.shape.strategy, entry.bytes}, entry.number});
    }
  }

  void rank(Ranked one) {
    const auto is_before = [](const Ranked& a, const Ranked& b) {
      return std::pair(a.candidate.step.step_s, a.number) < std::pair(b.candidate.step.step_s, b.number);
    };
    fastest_.insert(std::ranges::upper_bound(fastest_, one, is_before), std::move(one));
    if (fastest_.size() > search_.wanted) fastest_.pop_back();
  }

  const GridSearch& search_;
  const Topology& topology_;
  std::map<int, LoadSkew> skews_;  // by size of a group of experts
  std::vector<Entry> entries_;
  std::vector<Ranked> fastest_;
  FoundGrids found_;
};

}  // namespace

FoundGrids search_grids(const GridSearch& search) { return Searcher(search).run(); }

}  // namespace cadre
