// SPDX-License-Identifier: Apache-2.0
// Sinkhorn routing (Clark et al. 2022; the iteration as Megatron-LM has it): in training the scores exp(logits) are scaled
// by rows and columns until all tokens and all experts have the same sums, over the micro-batch of all ranks, and a token
// takes its best. Column sums are added in fixed point, so the number of ranks changes no bit. Weights come from the
// plain scores; outside of training the plain choice decides.
#include <algorithm>
#include <cmath>
#include <limits>

#include "layers/router/select.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr double kEpsilon = 1e-8;
constexpr double kTolerance = 1e-4;  // of the mean change of the columns' factors
constexpr int kMaxIterations = 100;
constexpr double kFixedPoint = 0x1p40;  // a share of a row is at most 1: 2^22 tokens fit

class Sinkhorn final : public Selector {
 public:
  explicit Sinkhorn(const SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.top_k; }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    if (ctx.training && !ctx.arena.is_dry_run()) {
      const std::vector<double> cost = cost_of(routing);
      Task<std::vector<double>> balancing = column_factors(ctx, cost, routing.num_tokens());
      const std::vector<double> factors = co_await balancing;
      with_element_type(routing.choice, [&]<class T>(std::type_identity<T>) {
        for (size_t i = 0; i < cost.size(); ++i) {
          T& choice = routing.choice.data<T>()[i];
          if (choice > -std::numeric_limits<T>::infinity()) {
            choice = static_cast<T>(cost[i] * factors[i % factors.size()]);
          }
        }
      });
    }
    choose_best(ctx, routing.choice, options_.top_k, routing.ids);
    limit_count(options_, ctx.tokens, routing.scores, routing.ids);
  }

 private:
  // exp(logit - the largest of the row): the row's factor takes up the difference. 0 where the token may not go.
  std::vector<double> cost_of(const Routing& routing) const {
    std::vector<double> cost(static_cast<size_t>(routing.logits.numel()));
    with_element_type(routing.logits, [&]<class T>(std::type_identity<T>) {
      const int64_t width = routing.num_experts();
      for (int64_t t = 0; t < routing.num_tokens(); ++t) {
        const T* logit = routing.logits.data<T>() + t * width;
        const double largest = *std::max_element(logit, logit + width);
        for (int64_t e = 0; e < width; ++e) {
          const int64_t i = t * width + e;
          const bool may = routing.choice.data<T>()[i] > -std::numeric_limits<T>::infinity();
          cost[static_cast<size_t>(i)] = may ? std::exp(double{logit[e]} - largest) : 0.0;
        }
      }
    });
    return cost;
  }

  // d1 of d0_t = 1 / (n0 sum_e d1_e cost_te), d1_e = 1 / (n1 sum_t d0_t cost_te), from d1 = 1 until it stays.
  Task<std::vector<double>> column_factors(LaneContext& ctx, const std::vector<double>& cost, int64_t num_rows) const {
    const auto width = static_cast<size_t>(options_.num_experts);
    std::vector<double> factors(width, 1.0);
    for (int iteration = 0; iteration < kMaxIterations; ++iteration) {
      // Column sums of the shares d1_e cost_te / sum of the row, and the number of rows.
      std::vector<int64_t> sums(width + 1, 0);
      sums[width] = num_rows;
      for (size_t first = 0; first < cost.size(); first += width) {
        double row = 0.0;
        for (size_t e = 0; e < width; ++e) row += factors[e] * cost[first + e];
        for (size_t e = 0; e < width; ++e) {
          const double share = factors[e] * cost[first + e] / (row + kEpsilon);
          sums[e] += static_cast<int64_t>(std::llround(share * kFixedPoint));
        }
      }
      Task<std::vector<int64_t>> summing = sum_over_ranks(ctx, std::move(sums));
      const std::vector<int64_t> total = co_await summing;
      const auto num_tokens = static_cast<double>(std::max<int64_t>(total[width], 1));
      double change = 0.0;
      for (size_t e = 0; e < width; ++e) {
        const double mean_share = static_cast<double>(total[e]) / kFixedPoint / num_tokens / factors[e];
        const double next = 1.0 / (static_cast<double>(width) * (mean_share + kEpsilon));
        change += std::abs(next - factors[e]) / static_cast<double>(width);
        factors[e] = next;
      }
      if (change < kTolerance) break;
    }
    co_return factors;
  }

  SelectOptions options_;
};

}  // namespace

std::unique_ptr<Selector> make_sinkhorn(const SelectOptions& options) { return std::make_unique<Sinkhorn>(options); }

}  // namespace cadre
