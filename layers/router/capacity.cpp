// SPDX-License-Identifier: Apache-2.0
#include "layers/router/capacity.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "layers/router/keep_best.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

// A whole number that rounding lifted by a few units in the last place stays what it is.
int64_t ceil_of(double number) { return static_cast<int64_t>(std::ceil(number * (1.0 - 0x1p-50))); }

std::vector<double> softmax_of(const std::vector<double>& logits) {
  const double largest = std::ranges::max(logits);
  std::vector<double> shares;
  for (const double logit : logits) shares.push_back(std::exp(logit - largest));
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

// Every slot with an expert, token by token.
std::vector<Candidate> candidates_of(const Routing& routing, DropPolicy policy, const TokenFacts& tokens) {
  std::vector<Candidate> candidates;
  const int64_t num_slots = routing.ids.dim(1);
  with_element_type(routing.scores, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < routing.ids.numel(); ++i) {
      const int32_t expert = routing.ids.data<int32_t>()[i];
      if (expert < 0) continue;
      const int64_t t = i / num_slots;
      const uint64_t key = policy == DropPolicy::probability
                               ? sort_key(routing.scores.data<T>()[t * routing.num_experts() + expert])
                               : static_cast<uint64_t>(num_slots - i % num_slots);
      candidates.push_back({expert, key, tokens.number_of(t)});
    }
  });
  return candidates;
}

}  // namespace

int64_t dynamic_capacity(int64_t base, double utilisation) {
  if (utilisation < 0.5) return static_cast<int64_t>(0.8 * static_cast<double>(base));
  if (utilisation > 1.5) return static_cast<int64_t>(1.2 * static_cast<double>(base));
  return base;
}

Capacity::Capacity(const std::string& prefix, int num_experts, int top_k, const CapacityOptions& options)
    : num_experts_(num_experts),
      top_k_(top_k),
      options_(options),
      state_(make_vector(prefix + ".capacity", num_experts, Init::Kind::zeros, Placement::buffer)) {}

std::vector<double> Capacity::state() const {
  std::vector<double> values;
  with_element_type(state_.value, [&]<class T>(std::type_identity<T>) {
    values.assign(state_.value.data<T>(), state_.value.data<T>() + num_experts_);
  });
  return values;
}

std::vector<int64_t> Capacity::capacities(double factor, int64_t num_tokens, int64_t tokens) const {
  const double mean = static_cast<double>(num_tokens) * top_k_ / num_experts_;
  const double wanted = tokens > 0 ? static_cast<double>(tokens) : factor * mean;
  std::vector<int64_t> capacities(static_cast<size_t>(num_experts_), ceil_of(wanted));
  if (options_.kind == CapacityKind::fixed) return capacities;
  const std::vector<double> values = state();
  if (options_.kind == CapacityKind::dynamic) {
    std::ranges::transform(capacities, values, capacities.begin(),
                           [](int64_t base, double value) { return dynamic_capacity(base, 1.0 + value); });
    return capacities;
  }
  const std::vector<double> shares = softmax_of(values);
  std::ranges::transform(shares, capacities.begin(),
                         [&](double share) { return ceil_of(wanted * num_experts_ * share); });
  return capacities;
}

Task<void> Capacity::limit(LaneContext& ctx, Routing& routing) const {
  if (!limits(ctx)) co_return;
  Task<std::vector<int64_t>> counting = sum_over_ranks(ctx, {routing.num_tokens()});
  const std::vector<int64_t> num_tokens = co_await counting;
  const Size size = size_of(ctx.training);
  std::vector<Candidate> candidates = candidates_of(routing, options_.drop, ctx.tokens);
  Task<std::vector<uint8_t>> keeping =
      keep_best(ctx, std::move(candidates), capacities(size.factor, num_tokens[0], size.tokens));
  const std::vector<uint8_t> kept = co_await keeping;
  size_t candidate = 0;
  for (int64_t i = 0; i < routing.ids.numel(); ++i) {
    int32_t& expert = routing.ids.data<int32_t>()[i];
    if (expert >= 0 && kept[candidate++] == 0) expert = -1;
  }
}

void Capacity::update(std::span<const int64_t> global_demand) {
  const auto total = static_cast<double>(std::accumulate(global_demand.begin(), global_demand.end(), int64_t{0}));
  if (!learns() || state_.frozen || total == 0.0) return;
  const double mean = total / num_experts_;
  const std::vector<double> shares = softmax_of(state());
  with_element_type(state_.value, [&]<class T>(std::type_identity<T>) {
    for (size_t e = 0; e < global_demand.size(); ++e) {
      const double utilisation = static_cast<double>(global_demand[e]) / mean;
      T& value = state_.value.data<T>()[e];
      if (options_.kind == CapacityKind::dynamic) {
        value += static_cast<T>(kUtilisationRate * (utilisation - 1.0 - double{value}));
      } else {
        const double lack = utilisation - num_experts_ * shares[e];
        value += static_cast<T>(lack > 0.0 ? options_.rate : lack < 0.0 ? -options_.rate : 0.0);
      }
    }
  });
  ++state_.version;
}

void Capacity::each_parameter(const ParameterVisitor& visit) {
  if (learns()) visit(state_);
}

}  // namespace cadre
