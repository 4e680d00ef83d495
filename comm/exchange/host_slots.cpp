// SPDX-License-Identifier: Apache-2.0
// Hierarchical combine slot by slot: inside the host rows are read where they are; between hosts every slot is a row of
// its own, and a message a pair carries them.
#include <utility>

#include "comm/exchange/hierarchical.hpp"

namespace cadre {
namespace {

class HostSlots : public RowTransfer {
 public:
  HostSlots(HierarchicalExchange& exchange, const Route& route, const RowFormat& format)
      : exchange_(exchange),
        route_(route),
        sides_(sides_of(route, Direction::to_tokens, Unit::slot)),
        format_(format),
        share_(exchange.host_memory(), exchange.pool(), HierarchicalExchange::kSlots, format.row_bytes()) {
    packed_ = exchange.pool().take(static_cast<size_t>(sides_.out.total()) * format.wire_bytes());
    received_ = exchange.pool().take(static_cast<size_t>(sides_.in.total()) * format.wire_bytes());
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
    const TokenOrder tokens = token_order(route_.plan, Unit::slot);
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
  const Route& route_;
  Sides sides_;
  RowFormat format_;
  HostShare share_;
  std::vector<int64_t> send_counts_, receive_counts_;
  Buffer packed_, received_;  // by the order of all slots; only those of other hosts are filled
  Buffer copies_;
  std::vector<int32_t> out_index_, index_;
};

}  // namespace

std::unique_ptr<RowTransfer> make_host_slots(HierarchicalExchange& exchange, const Route& route,
                                             const RowFormat& format) {
  return std::make_unique<HostSlots>(exchange, route, format);
}

}  // namespace cadre
