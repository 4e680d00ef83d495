// SPDX-License-Identifier: Apache-2.0
// The hierarchical strategy, results to tokens: one class for partial sums and one for slots.
#include <algorithm>
#include <cstring>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/hierarchical.hpp"

namespace cadre {
namespace {

// What the ranks of a host have for a token of another host is added up at the rank where that token landed, in the order
// of ranks, and returns as one row.
class HostSums : public RowTransfer {
 public:
  HostSums(const HierarchicalRoute& route, const RowFormat& format)
      : exchange_(route.hierarchy()),
        map_(exchange_.map()),
        plan_(route.plan()),
        receive_(route.receive()),
        hosts_(*route.hosts()),
        format_(format),
        share_(exchange_.host_memory(), exchange_.pool(), HierarchicalExchange::kSums, format.row_bytes()) {
    CADRE_ASSERT(hosts_.needs_sent);  // the masks of the dispatch say which ranks have sums for which row
    packed_ = exchange_.pool().take(static_cast<size_t>(hosts_.landing_offsets.back()) * format.wire_bytes());
    returned_ = exchange_.pool().take(hosts_.out.token.size() * format.wire_bytes());
  }

  ~HostSums() override {
    if (!finished_.done()) return;
    for (Buffer* buffer : {&packed_, &returned_, &copies_}) exchange_.pool().give_back(std::move(*buffer));
  }

  // Each neighbour gets the sums for its own tokens, and then those for the tokens that landed on it, by source.
  void pack(const Elements& rows) override {
    std::vector<int64_t> offsets = {0};
    for (const int neighbour : map_.neighbours()) {
      append(rows, receive_.row_offsets[neighbour], receive_.row_counts[neighbour]);
      for (int source = 0; source < exchange_.group().size(); ++source) {
        if (exchange_.same_host(source) || map_.landing_rank(source, map_.host()) != neighbour) continue;
        append(rows, receive_.row_offsets[source], receive_.row_counts[source]);
      }
      offsets.push_back(static_cast<int64_t>(out_index_.size()));
      exchange_.count_traffic(
          neighbour, (offsets.back() - offsets[offsets.size() - 2]) * static_cast<int64_t>(format_.row_bytes()));
    }
    share_.offer({rows.base, rows.stride, out_index_}, offsets);
  }

  void start() override {
    share_.post();
    std::vector<int64_t> counts;
    for (const int neighbour : map_.neighbours()) {
      counts.push_back(plan_.row_counts[neighbour] + landed_rows_for(map_.local_rank_of(neighbour)));
    }
    arrival_ = share_.arrival(std::move(counts));
    const HostRows& out = hosts_.out;
    for (int host = 0; host < map_.num_hosts(); ++host) {
      if (out.counts[host] == 0) continue;
      const std::span<std::byte> into =
          returned_.span().subspan(static_cast<size_t>(out.offsets[host]) * format_.wire_bytes(),
                                   static_cast<size_t>(out.counts[host]) * format_.wire_bytes());
      messages_.push_back(exchange_.group().receive(into, returned_.share(), map_.landing_rank(exchange_.rank(), host),
                                                    HierarchicalExchange::kSumsTag));
    }
    finished_ = Request(exchange_.group().job(), arrival_.what(), std::make_unique<Arrival>(*this));
  }

  Elements unpack() override {
    std::vector<ArrivedRow> rows;
    offsets_ = {0};
    std::vector<int64_t> next_near(static_cast<size_t>(plan_.num_ranks()), 0);
    std::vector<int64_t> next_far(hosts_.out.offsets.begin(), hosts_.out.offsets.end() - 1);
    std::vector<int64_t> last_token(next_far.size(), -1);
    for (int64_t token = 0; token < plan_.num_tokens; ++token) {
      for (int32_t i = plan_.token_rows[token]; i < plan_.token_rows[token + 1]; ++i) {
        const int rank = rank_of_row(plan_.token_row[i]);
        const int host = map_.host_of(rank);
        if (host == map_.host()) {
          rows.push_back({share_.at(map_.local_rank_of(rank), next_near[rank]++), false});
        } else if (last_token[host] != token) {
          rows.push_back({returned_.data() + static_cast<size_t>(next_far[host]++) * format_.wire_bytes(), true});
        }
        last_token[host] = token;
      }
      offsets_.push_back(static_cast<int32_t>(rows.size()));
    }
    Elements elements = arrange(rows, format_, exchange_.pool(), copies_, index_);
    elements.offsets = offsets_;
    return elements;
  }

  Request& release() override { return released_ = share_.release(); }

 private:
  class Arrival : public PendingOperation {
   public:
    explicit Arrival(HostSums& transfer) : transfer_(transfer) {}

    bool test() override {
      if (!summed_) {
        if (!transfer_.arrival_.test()) return false;
        transfer_.send_sums();
        summed_ = true;
      }
      return std::all_of(transfer_.messages_.begin(), transfer_.messages_.end(),
                         [](Request& message) { return message.test(); });
    }
    std::string missing() const override {
      if (!summed_) return transfer_.arrival_.missing();
      for (const Request& message : transfer_.messages_) {
        if (!message.done()) return message.missing();
      }
      return "no rank";
    }

   private:
    HostSums& transfer_;
    bool summed_ = false;
  };

  void append(const Elements& rows, int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      out_index_.push_back(rows.index.empty() ? static_cast<int32_t>(i) : rows.index[static_cast<size_t>(i)]);
    }
  }

  const uint64_t* needs_of(int64_t landing_row) const {
    return hosts_.landing_needs.data() + static_cast<size_t>(landing_row) * exchange_.need_words();
  }

  int64_t landed_rows_for(int local_rank) const {
    int64_t count = 0;
    for (int64_t row = 0; row < hosts_.landing_offsets.back(); ++row) {
      count += NeedMask::get(needs_of(row), local_rank) ? 1 : 0;
    }
    return count;
  }

  int rank_of_row(int32_t row) const {
    const std::vector<int64_t>& offsets = plan_.row_offsets;
    return static_cast<int>(std::upper_bound(offsets.begin(), offsets.end(), int64_t{row}) - offsets.begin()) - 1;
  }

  void send_sums() {
    const size_t wire_bytes = format_.wire_bytes();
    std::vector<std::byte> sum(format_.row_bytes());
    std::vector<int64_t> next;  // by neighbour: behind the sums for this rank's own tokens
    for (const int neighbour : map_.neighbours()) next.push_back(plan_.row_counts[neighbour]);
    for (int64_t row = 0; row < hosts_.landing_offsets.back(); ++row) {
      bool first = true;
      for (size_t local = 0; local < next.size(); ++local) {
        if (!NeedMask::get(needs_of(row), static_cast<int>(local))) continue;
        const std::byte* part = share_.at(static_cast<int>(local), next[local]++);
        if (first) std::memcpy(sum.data(), part, sum.size());
        if (!first) add_row(format_, part, sum.data());
        first = false;
      }
      encode_row(format_, sum.data(), packed_.data() + static_cast<size_t>(row) * wire_bytes);
    }
    for (size_t i = 0; i < hosts_.landing_counts.size(); ++i) {
      if (hosts_.landing_counts[i] == 0) continue;
      const auto first = static_cast<size_t>(hosts_.landing_offsets[i]) * wire_bytes;
      const auto bytes = static_cast<size_t>(hosts_.landing_counts[i]) * wire_bytes;
      const int source = map_.landing_sources()[i];
      messages_.push_back(exchange_.group().send({packed_.data() + first, bytes}, packed_.share(), source,
                                                 HierarchicalExchange::kSumsTag));
      exchange_.count_traffic(source, static_cast<int64_t>(bytes));
    }
  }

  HierarchicalExchange& exchange_;
  const HostMap& map_;
  const DispatchPlan& plan_;
  const ReceiveCounts& receive_;
  const HostRoute& hosts_;
  RowFormat format_;
  HostShare share_;
  Request arrival_;
  std::vector<Request> messages_;
  Buffer packed_;    // sums for other hosts, by (landing source, token)
  Buffer returned_;  // sums from other hosts, by (host, token)
  Buffer copies_;
  std::vector<int32_t> out_index_, index_, offsets_;
};

// Inside the host rows are read in place; between hosts every slot is a row of its own, in one message per pair of ranks.
class HostSlots : public RowTransfer {
 public:
  HostSlots(const HierarchicalRoute& route, const RowFormat& format)
      : exchange_(route.hierarchy()),
        plan_(route.plan()),
        sides_(route.sides(Direction::to_tokens, Unit::slot)),
        format_(format),
        share_(exchange_.host_memory(), exchange_.pool(), HierarchicalExchange::kSlots, format.row_bytes()) {
    packed_ = exchange_.pool().take(static_cast<size_t>(sides_.out.total()) * format.wire_bytes());
    received_ = exchange_.pool().take(static_cast<size_t>(sides_.in.total()) * format.wire_bytes());
  }

  ~HostSlots() override {
    if (!finished_.done()) return;
    for (Buffer* buffer : {&packed_, &received_, &copies_}) exchange_.pool().give_back(std::move(*buffer));
  }

  void pack(const Elements& rows) override {
    std::vector<int64_t> counts;
    for (int peer = 0; peer < exchange_.group().size(); ++peer) {
      const int64_t first = sides_.out.offsets[peer];
      if (exchange_.same_host(peer)) counts.push_back(sides_.out.counts[peer]);
      for (int64_t i = first; i < first + sides_.out.counts[peer]; ++i) {
        if (exchange_.same_host(peer)) {
          out_index_.push_back(rows.index.empty() ? static_cast<int32_t>(i) : rows.index[static_cast<size_t>(i)]);
        } else {
          encode_row(format_, rows.at(i), packed_.data() + static_cast<size_t>(i) * format_.wire_bytes());
        }
      }
    }
    share_.offer({rows.base, rows.stride, out_index_}, offsets_of(counts));
  }

  void start() override {
    share_.post();
    std::vector<int64_t> near;
    send_counts_ = sides_.out.counts;
    receive_counts_ = sides_.in.counts;
    for (int peer = 0; peer < exchange_.group().size(); ++peer) {
      const bool neighbour = exchange_.same_host(peer);
      exchange_.count_traffic(
          peer, send_counts_[peer] * static_cast<int64_t>(neighbour ? format_.row_bytes() : format_.wire_bytes()));
      if (!neighbour) continue;
      near.push_back(receive_counts_[peer]);
      send_counts_[peer] = 0;
      receive_counts_[peer] = 0;
    }
    std::vector<Request> both;
    both.push_back(exchange_.group().transport().all_to_all_rows({packed_.data(), send_counts_, sides_.out.offsets},
                                                                 {received_.data(), receive_counts_, sides_.in.offsets},
                                                                 format_.wire_bytes()));
    both.back().keep(packed_.share());
    both.back().keep(received_.share());
    both.push_back(share_.arrival(std::move(near)));
    finished_ = all_of(std::move(both));
  }

  Elements unpack() override {
    std::vector<ArrivedRow> rows;  // in the order of the plan's slots
    rows.reserve(static_cast<size_t>(sides_.in.total()));
    for (int peer = 0; peer < exchange_.group().size(); ++peer) {
      for (int64_t i = 0; i < sides_.in.counts[peer]; ++i) {
        if (exchange_.same_host(peer)) {
          rows.push_back({share_.at(exchange_.map().local_rank_of(peer), i), false});
        } else {
          const auto slot = static_cast<size_t>(sides_.in.offsets[peer] + i);
          rows.push_back({received_.data() + slot * format_.wire_bytes(), true});
        }
      }
    }
    const TokenOrder tokens = token_order(plan_, Unit::slot);
    std::vector<ArrivedRow> by_token;
    by_token.reserve(rows.size());
    for (const int32_t i : tokens.index) by_token.push_back(rows[i]);
    Elements elements = arrange(by_token, format_, exchange_.pool(), copies_, index_);
    elements.offsets = tokens.offsets;
    return elements;
  }

  Request& release() override { return released_ = share_.release(); }

 private:
  HierarchicalExchange& exchange_;
  const DispatchPlan& plan_;
  Sides sides_;
  RowFormat format_;
  HostShare share_;
  std::vector<int64_t> send_counts_, receive_counts_;
  Buffer packed_, received_;  // by the order of all slots; only those of other hosts are filled
  Buffer copies_;
  std::vector<int32_t> out_index_, index_;
};

}  // namespace

std::unique_ptr<RowTransfer> make_host_sums(const HierarchicalRoute& route, const RowFormat& format) {
  return std::make_unique<HostSums>(route, format);
}

std::unique_ptr<RowTransfer> make_host_slots(const HierarchicalRoute& route, const RowFormat& format) {
  return std::make_unique<HostSlots>(route, format);
}

}  // namespace cadre
