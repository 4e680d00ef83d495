// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/plan.hpp"

#include "comm/base/check.hpp"
#include "layers/facade/moe.hpp"

namespace cadre::moe {
inline namespace v1 {

int Plan::num_ranks() const { return plan_->num_ranks(); }
int Plan::top_k() const { return plan_->top_k; }
int64_t Plan::num_tokens() const { return plan_->num_tokens; }
int64_t Plan::num_rows() const { return plan_->num_rows(); }
int64_t Plan::num_slots() const { return plan_->num_slots(); }
int64_t Plan::num_dropped() const { return plan_->num_dropped; }
std::span<const int64_t> Plan::row_counts() const { return plan_->row_counts; }
std::span<const int64_t> Plan::slot_counts() const { return plan_->slot_counts; }
std::span<const int32_t> Plan::row_token() const { return plan_->row_token; }
std::span<const int32_t> Plan::row_slots() const { return plan_->row_slots; }
std::span<const int32_t> Plan::slots() const { return plan_->slots; }
std::span<const int32_t> Plan::slot_expert() const { return plan_->slot_expert; }
std::string Plan::describe() const { return plan_->describe(); }
bool Plan::operator==(const Plan& other) const { return *plan_ == *other.plan_; }

Plan make_plan(std::span<const int32_t> ids, int top_k, int num_experts, int num_ranks, int rank,
               const std::vector<std::vector<int>>& experts_of) {
  CADRE_CHECK(num_experts >= 1, fmt::format("num_experts = {}, at least 1", num_experts));
  CADRE_CHECK(top_k >= 1 && top_k <= num_experts,
              fmt::format("top_k = {} of {} experts, 1 to num_experts", top_k, num_experts));
  CADRE_CHECK(num_ranks >= 1 && rank >= 0 && rank < num_ranks, fmt::format("rank {} of {}", rank, num_ranks));
  CADRE_CHECK(ids.size() % static_cast<size_t>(top_k) == 0,
              fmt::format("ids has {} values, not a multiple of top_k = {}", ids.size(), top_k));
  CADRE_CHECK(experts_of.empty() || static_cast<int>(experts_of.size()) == num_ranks,
              fmt::format("experts_of has {} lists for {} ranks", experts_of.size(), num_ranks));
  const ExpertMap map =
      experts_of.empty() ? ExpertMap::contiguous(num_experts, num_ranks) : ExpertMap::of(num_experts, experts_of);
  return Plan(std::make_shared<const DispatchPlan>(make_dispatch_plan(ids, top_k, map, rank)));
}

}  // namespace v1
}  // namespace cadre::moe
