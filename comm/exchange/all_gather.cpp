// SPDX-License-Identifier: Apache-2.0
// The all-gather strategy: every rank gets the rows of all ranks as they are, and the list of those that are for it.
// Nothing is packed, so it is best where nearly every rank needs nearly every row: large top-k, or few rows. Results
// come back as a ragged reduce-scatter: each rank sends the sums it has, and those that it has not are left out.
#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

class GatherTransfer : public RowTransfer {
 public:
  // `token_counts`: of each rank.
  GatherTransfer(const GroupRoute& route, const std::vector<int64_t>& token_counts, const RowFormat& format)
      : exchange_(route.exchange()),
        plan_(route.plan()),
        receive_(route.receive()),
        format_(format),
        codec_(exchange_.codec(format)),
        wire_bytes_(format.wire_bytes()),
        me_(static_cast<size_t>(exchange_.rank())),
        token_counts_(token_counts),
        token_offsets_(offsets_of(token_counts_)),
        gathered_(exchange_.pool(format).take(static_cast<size_t>(token_offsets_.back()) * wire_bytes_)),
        tokens_here_(exchange_.pool().take(static_cast<size_t>(receive_.num_rows()) * sizeof(int32_t))) {}

  ~GatherTransfer() override {
    exchange_.pool(format_).give_back(std::move(decoded_));
    if (!finished_.done()) return;
    exchange_.pool(format_).give_back(std::move(gathered_));
    for (Buffer* buffer : {&tokens_there_, &tokens_here_}) exchange_.pool().give_back(std::move(*buffer));
  }

  void pack(const Elements& rows) override {
    CADRE_ASSERT(rows.index.size() == plan_.row_token.size());
    std::byte* mine = gathered_.data() + static_cast<size_t>(token_offsets_[me_]) * wire_bytes_;
    codec_.encode(format_, {rows.base, rows.stride}, plan_.num_tokens, mine);
    packed_ = exchange_.packed(format_);
  }

  void start() override {
    CADRE_ASSERT(packed_.done());
    Transport& transport = exchange_.group().transport();
    const std::byte* mine = gathered_.data() + static_cast<size_t>(token_offsets_[me_]) * wire_bytes_;
    rows_to_.assign(token_counts_.size(), plan_.num_tokens);
    rows_to_[me_] = 0;
    token_counts_[me_] = 0;  // already in place
    same_rows_.assign(token_counts_.size(), 0);
    const std::span<const std::byte> tokens = std::as_bytes(std::span(plan_.row_token));
    tokens_there_ = exchange_.pool().take(tokens.size());
    std::ranges::copy(tokens, tokens_there_.data());
    for (size_t peer = 0; peer < rows_to_.size(); ++peer) {
      const int64_t bytes = rows_to_[peer] * static_cast<int64_t>(wire_bytes_) +
                            plan_.row_counts[peer] * static_cast<int64_t>(sizeof(int32_t));
      exchange_.count_traffic(static_cast<int>(peer), bytes);
    }
    std::vector<Request> both;
    both.push_back(transport.all_to_all_rows({tokens_there_.data(), plan_.row_counts, plan_.row_offsets},
                                             {tokens_here_.data(), receive_.row_counts, receive_.row_offsets},
                                             sizeof(int32_t)));
    both.back().keep(tokens_there_.share());
    both.back().keep(tokens_here_.share());
    both.push_back(transport.all_to_all_rows({mine, rows_to_, same_rows_},
                                             {gathered_.data(), token_counts_, token_offsets_}, wire_bytes_));
    both.back().keep(gathered_.share());
    finished_ = all_of(std::move(both));
  }

  Elements unpack() override {
    index_.resize(static_cast<size_t>(receive_.num_rows()));
    for (size_t source = 0; source < token_counts_.size(); ++source) {
      for (int64_t row = receive_.row_offsets[source]; row < receive_.row_offsets[source + 1]; ++row) {
        const int32_t token = tokens_here_.as<int32_t>()[row];
        const int64_t num_tokens = token_offsets_[source + 1] - token_offsets_[source];
        CADRE_CHECK_PEER(token >= 0 && token < num_tokens,
                         fmt::format("rank {} of the group names token {} of {}", source, token, num_tokens));
        index_[row] = static_cast<int32_t>(token_offsets_[source]) + token;
      }
    }
    if (format_.wire == Wire::same) return {gathered_.data(), wire_bytes_, index_};
    decoded_ = exchange_.pool(format_).take(index_.size() * format_.row_bytes());
    const auto count = static_cast<int64_t>(index_.size());
    codec_.decode(format_, {gathered_.data(), wire_bytes_, index_}, count, decoded_.data());
    return {decoded_.data(), format_.row_bytes()};
  }

 private:
  GroupExchange& exchange_;
  const DispatchPlan& plan_;
  const ReceiveCounts& receive_;
  RowFormat format_;
  const RowCodec& codec_;
  size_t wire_bytes_;
  size_t me_;
  std::vector<int64_t> token_counts_, token_offsets_;  // of each source
  std::vector<int64_t> rows_to_, same_rows_;           // every peer gets the same rows
  Buffer gathered_;                                    // rows of all ranks, by (source, token)
  Buffer tokens_there_;                                // i32: which tokens of this rank are for each peer
  Buffer tokens_here_;                                 // i32: which tokens of each source are for this rank
  Buffer decoded_;
  std::vector<int32_t> index_;
};

class GatherRoute : public GroupRoute {
 public:
  using GroupRoute::GroupRoute;

  std::unique_ptr<RowTransfer> transfer(Direction direction, Unit unit, const RowFormat& format) override {
    if (direction == Direction::to_experts && unit == Unit::row) {
      return std::make_unique<GatherTransfer>(*this, token_counts_, format);
    }
    return GroupRoute::transfer(direction, unit, format);
  }

 protected:
  int64_t extra_for(int /*peer*/) const override { return plan_.num_tokens; }
  void learn_extra(std::vector<int64_t> of_peer) override {
    token_counts_ = std::move(of_peer);
    checked_int(offsets_of(token_counts_).back(), "rows to gather");  // their indices are 32 bits wide
  }

 private:
  std::vector<int64_t> token_counts_;  // of each rank
};

class AllGatherExchange : public GroupExchange {
 public:
  using GroupExchange::GroupExchange;

  std::string_view name() const override { return "all_gather"; }
  bool packs_later() const override { return has_device(); }
  std::unique_ptr<Route> route(DispatchPlan plan) override {
    return std::make_unique<GatherRoute>(*this, std::move(plan));
  }
};

}  // namespace

std::unique_ptr<Exchange> make_all_gather_exchange(const ExchangeSetup& setup) {
  return std::make_unique<AllGatherExchange>(setup);
}

}  // namespace cadre
