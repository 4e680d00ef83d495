// SPDX-License-Identifier: Apache-2.0
// Coarse, then fine: a token takes its best groups by the sum of their scores, and equally many experts from each. With
// the weights of WeightOptions::groups this is the two-level mixture of Shazeer et al. 2017, appendix B.
#include <algorithm>
#include <limits>
#include <numeric>

#include "layers/router/eligibility.hpp"
#include "layers/router/select.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

class Hierarchical final : public Selector {
 public:
  explicit Hierarchical(const SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.top_k; }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    if (ctx.arena.is_dry_run()) co_return;
    const int64_t num_experts = routing.num_experts();
    limit_to_groups({options_.groups, options_.kept_groups, options_.num_experts}, routing.choice);
    with_element_type(routing.choice, [&]<class T>(std::type_identity<T>) {
      for (int64_t t = 0; t < routing.num_tokens(); ++t) {
        select_row(routing.choice.data<T>() + t * num_experts, routing.ids.data<int32_t>() + t * options_.top_k);
      }
    });
    limit_count(options_, ctx.tokens, routing.scores, routing.ids);
  }

 private:
  template <class T>
  void select_row(const T* choice, int32_t* ids) const {
    const int of_group = options_.top_k / options_.kept_groups;
    std::vector<int32_t> chosen;
    std::vector<int32_t> order;
    const auto better = [choice](int32_t a, int32_t b) { return choice[a] > choice[b]; };
    for (int g = 0; g < options_.groups; ++g) {
      const auto [first, count] = expert_group(options_.num_experts, options_.groups, g);
      order.resize(static_cast<size_t>(count));
      std::iota(order.begin(), order.end(), static_cast<int32_t>(first));
      std::ranges::stable_sort(order, better);
      for (int k = 0; k < of_group && k < count; ++k) {
        if (choice[order[static_cast<size_t>(k)]] > -std::numeric_limits<T>::infinity()) {
          chosen.push_back(order[static_cast<size_t>(k)]);
        }
      }
    }
    std::ranges::stable_sort(chosen, better);
    std::fill_n(ids, options_.top_k, -1);
    std::ranges::copy(chosen, ids);
  }

  SelectOptions options_;
};

}  // namespace

std::unique_ptr<Selector> make_hierarchical(const SelectOptions& options) {
  return std::make_unique<Hierarchical>(options);
}

}  // namespace cadre
