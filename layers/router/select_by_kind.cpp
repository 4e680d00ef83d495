// SPDX-License-Identifier: Apache-2.0
// Of experts of three kinds that take turns by id, equally many of each: a token's K / 3 best of those with id mod 3 = 0,
// then of 1, then of 2. A token that may visit n experts at most has ceil(n / 3) of each.
#include <algorithm>
#include <limits>

#include "layers/router/select.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

constexpr int kKindsOfExperts = 3;

class ByKind final : public Selector {
 public:
  explicit ByKind(const SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.top_k; }

  Task<void> select(LaneContext& ctx, Routing& routing) const override {
    if (ctx.arena.is_dry_run()) co_return;
    const int64_t num_experts = routing.num_experts();
    with_element_type(routing.choice, [&]<class T>(std::type_identity<T>) {
      for (int64_t t = 0; t < routing.num_tokens(); ++t) {
        select_row(routing.choice.data<T>() + t * num_experts, most_of_each(ctx.tokens, t),
                   routing.ids.data<int32_t>() + t * options_.top_k);
      }
    });
  }

 private:
  int most_of_each(const TokenFacts& tokens, int64_t t) const {
    const int of_each = options_.top_k / kKindsOfExperts;
    if (!tokens.num_experts.defined()) return of_each;
    return std::clamp((tokens.num_experts.data<int32_t>()[t] + kKindsOfExperts - 1) / kKindsOfExperts, 1, of_each);
  }

  template <class T>
  void select_row(const T* choice, int most, int32_t* ids) const {
    const int of_each = options_.top_k / kKindsOfExperts;
    std::fill_n(ids, options_.top_k, -1);
    std::vector<int32_t> order;
    for (int kind = 0; kind < kKindsOfExperts; ++kind) {
      order.clear();
      for (int e = kind; e < options_.num_experts; e += kKindsOfExperts) {
        if (choice[e] > -std::numeric_limits<T>::infinity()) order.push_back(e);
      }
      std::ranges::stable_sort(order, [choice](int32_t a, int32_t b) { return choice[a] > choice[b]; });
      order.resize(std::min(order.size(), static_cast<size_t>(most)));
      std::ranges::copy(order, ids + kind * of_each);
    }
  }

  SelectOptions options_;
};

}  // namespace

std::unique_ptr<Selector> make_by_kind(const SelectOptions& options) { return std::make_unique<ByKind>(options); }

}  // namespace cadre
