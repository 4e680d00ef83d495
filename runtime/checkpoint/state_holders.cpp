// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/state_holders.hpp"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"

namespace cadre {
namespace {

using Lists = std::vector<std::vector<uint64_t>>;

class ListGather : public PendingOperation {
 public:
  ListGather(const Communicator& group, std::vector<uint64_t> mine, std::shared_ptr<Lists> result)
      : group_(group),
        mine_(std::move(mine)),
        lengths_(group.all_gather(static_cast<int64_t>(mine_.size()))),
        result_(std::move(result)) {
    lengths_.request().hide();
  }

  bool test() override {
    if (!lengths_.request().test()) return false;
    if (!all_) {
      CADRE_CHECK_PEER(std::ranges::min(lengths_.value()) >= 0, "a rank announces a list of negative length");
      mine_.resize(longest());
      all_.emplace(group_.all_gather(mine_));
      all_->request().hide();
    }
    if (!all_->request().test()) return false;
    for (size_t rank = 0; rank < lengths_.value().size(); ++rank) {
      const uint64_t* first = all_->value().data() + rank * longest();
      result_->emplace_back(first, first + lengths_.value()[rank]);
    }
    return true;
  }
  std::string missing() const override {
    const Request& awaited = all_ ? std::as_const(*all_).request() : lengths_.request();
    return awaited.missing();
  }
  bool outlives_job() const override { return false; }

 private:
  size_t longest() const { return static_cast<size_t>(std::ranges::max(lengths_.value())); }

  const Communicator& group_;
  std::vector<uint64_t> mine_;
  Pending<std::vector<int64_t>> lengths_;
  std::optional<Pending<std::vector<uint64_t>>> all_;
  std::shared_ptr<Lists> result_;
};

}  // namespace

Pending<Lists> start_gather_lists(const Communicator& group, std::vector<uint64_t> mine) {
  const auto result = std::make_shared<Lists>();
  std::string what = fmt::format("gathering lists on '{}' (rank {} of {})", group.name(), group.rank(), group.size());
  auto gather = std::make_unique<ListGather>(group, std::move(mine), result);
  return {Request(group.job(), std::move(what), std::move(gather)), result};
}

std::vector<std::vector<uint64_t>> gather_lists(const Communicator& world, double deadline_seconds, const Position& at,
                                                std::vector<uint64_t> mine) {
  return wait(start_gather_lists(world, std::move(mine)), deadline_seconds, at);
}

std::vector<std::vector<int>> givers_of(const std::vector<std::vector<uint64_t>>& wanted,
                                        const std::vector<std::vector<uint64_t>>& held) {
  std::unordered_map<uint64_t, std::vector<int>> holders;  // ascending
  for (size_t rank = 0; rank < held.size(); ++rank) {
    for (const uint64_t key : held[rank]) {
      std::vector<int>& ranks = holders[key];
      if (ranks.empty() || ranks.back() != static_cast<int>(rank)) ranks.push_back(static_cast<int>(rank));
    }
  }
  std::vector<std::vector<int>> givers(wanted.size());
  for (size_t rank = 0; rank < wanted.size(); ++rank) {
    for (const uint64_t key : wanted[rank]) {
      const auto found = holders.find(key);
      if (found == holders.end()) return {};
      const std::vector<int>& ranks = found->second;
      const bool has_it = std::ranges::binary_search(ranks, static_cast<int>(rank));
      givers[rank].push_back(has_it ? static_cast<int>(rank) : ranks[rank % ranks.size()]);
    }
  }
  return givers;
}

}  // namespace cadre
