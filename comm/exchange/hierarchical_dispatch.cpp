// SPDX-License-Identifier: Apache-2.0
// Hierarchical dispatch. Rows for this host are offered where they are; rows for another go to their landing rank there,
// once, with a mask of who needs them; what landed here is offered to the neighbours.
#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/hierarchical.hpp"

namespace cadre {
namespace {

class HostDispatch : public RowTransfer {
 public:
  HostDispatch(const HierarchicalRoute& route, const RowFormat& format)
      : exchange_(route.hierarchy()),
        map_(exchange_.map()),
        plan_(route.plan()),
        receive_(route.receive()),
        hosts_(route.hosts()),
        format_(format),
        own_(exchange_.host_memory(), exchange_.pool(), HierarchicalExchange::kOwnRows, format.row_bytes()),
        landed_(exchange_.host_memory(), exchange_.pool(), HierarchicalExchange::kLandedRows, format.wire_bytes()) {
    const size_t bytes = static_cast<size_t>(hosts_->landing_offsets.back()) * format.wire_bytes();
    landing_ = exchange_.landing_space(landed_.epoch(), bytes);
    if (!landing_.empty() || bytes == 0) return;
    landing_buffer_ = exchange_.pool().take(bytes);
    landing_ = landing_buffer_.span();
  }

  ~HostDispatch() override {
    if (!finished_.done()) return;
    for (Buffer* buffer : {&packed_, &landing_buffer_, &copies_}) exchange_.pool().give_back(std::move(*buffer));
  }

  void pack(const Elements& rows) override {
    CADRE_ASSERT(rows.index.size() == plan_.row_token.size());
    offer_to_neighbours(rows);
    const HostRows& out = hosts_->out;
    const size_t wire_bytes = format_.wire_bytes();
    packed_ = exchange_.pool().take(out.token.size() * wire_bytes);
    for (size_t i = 0; i < out.token.size(); ++i) {
      encode_row(format_, rows.base + static_cast<size_t>(out.token[i]) * rows.stride, packed_.data() + i * wire_bytes);
    }
  }

  void start() override {
    own_.post();
    std::vector<int64_t> counts;
    for (const int neighbour : map_.neighbours()) counts.push_back(receive_.row_counts[neighbour]);
    own_arrival_ = own_.arrival(std::move(counts));
    send_to_hosts();
    receive_landing();
    hosts_->needs_sent = true;
    finished_ = Request(exchange_.group().job(), own_arrival_.what(), std::make_unique<Arrival>(*this));
  }

  Elements unpack() override {
    std::vector<ArrivedRow> rows;
    rows.reserve(static_cast<size_t>(receive_.num_rows()));
    std::vector<int64_t> next_landed(map_.neighbours().size(), 0);
    for (int source = 0; source < exchange_.group().size(); ++source) {
      const bool neighbour = exchange_.same_host(source);
      const int from = map_.local_rank_of(neighbour ? source : map_.landing_rank(source, map_.host()));
      for (int64_t i = 0; i < receive_.row_counts[source]; ++i) {
        if (neighbour) {
          rows.push_back({own_.at(from, i), false});
        } else {
          rows.push_back({landed_.at(from, next_landed[from]++), true});
        }
      }
    }
    return arrange(rows, format_, exchange_.pool(), copies_, index_);
  }

 private:
  class Arrival : public PendingOperation {
   public:
    explicit Arrival(HostDispatch& transfer) : transfer_(transfer) {}

    bool test() override {
      if (!landed_) {
        for (Request& message : transfer_.messages_) {
          if (!message.test()) return false;
        }
        transfer_.offer_landed();
        landed_ = true;
      }
      return transfer_.own_arrival_.test() && transfer_.landed_arrival_.test();
    }
    std::string missing() const override {
      for (const Request& message : transfer_.messages_) {
        if (!message.done()) return message.missing();
      }
      const Request& rest = transfer_.own_arrival_.done() ? transfer_.landed_arrival_ : transfer_.own_arrival_;
      return rest.missing();
    }

   private:
    HostDispatch& transfer_;
    bool landed_ = false;
  };

  void offer_to_neighbours(const Elements& rows) {
    std::vector<int64_t> counts;
    for (const int neighbour : map_.neighbours()) {
      counts.push_back(plan_.row_counts[neighbour]);
      const auto first = rows.index.begin() + plan_.row_offsets[neighbour];
      own_index_.insert(own_index_.end(), first, first + plan_.row_counts[neighbour]);
      exchange_.count_traffic(neighbour, plan_.row_counts[neighbour] * static_cast<int64_t>(format_.row_bytes()));
    }
    own_.offer({rows.base, rows.stride, own_index_}, offsets_of(counts));
  }

  void send_to_hosts() {
    const HostRows& out = hosts_->out;
    const Communicator& group = exchange_.group();
    const size_t need_bytes = exchange_.need_words() * sizeof(uint64_t);
    for (int host = 0; host < map_.num_hosts(); ++host) {
      const auto first = static_cast<size_t>(out.offsets[host]);
      const auto count = static_cast<size_t>(out.counts[host]);
      if (count == 0) continue;
      const int peer = map_.landing_rank(exchange_.rank(), host);
      messages_.push_back(group.send({packed_.data() + first * format_.wire_bytes(), count * format_.wire_bytes()},
                                     packed_.share(), peer, HierarchicalExchange::kRowsTag));
      exchange_.count_traffic(peer, static_cast<int64_t>(count * format_.wire_bytes()));
      if (hosts_->needs_sent) continue;
      const auto needs = std::as_bytes(std::span(out.needs)).subspan(first * need_bytes, count * need_bytes);
      messages_.push_back(group.send(needs, hosts_, peer, HierarchicalExchange::kNeedsTag));
      exchange_.count_traffic(peer, static_cast<int64_t>(needs.size()));
    }
  }

  void receive_landing() {
    const Communicator& group = exchange_.group();
    const size_t need_bytes = exchange_.need_words() * sizeof(uint64_t);
    for (size_t i = 0; i < map_.landing_sources().size(); ++i) {
      const auto first = static_cast<size_t>(hosts_->landing_offsets[i]);
      const auto count = static_cast<size_t>(hosts_->landing_counts[i]);
      if (count == 0) continue;
      const int source = map_.landing_sources()[i];
      messages_.push_back(group.receive(landing_.subspan(first * format_.wire_bytes(), count * format_.wire_bytes()),
                                        landing_buffer_.share(), source, HierarchicalExchange::kRowsTag));
      if (hosts_->needs_sent) continue;
      const auto needs = std::as_writable_bytes(std::span(hosts_->landing_needs));
      messages_.push_back(group.receive(needs.subspan(first * need_bytes, count * need_bytes), hosts_, source,
                                        HierarchicalExchange::kNeedsTag));
    }
  }

  // Each neighbour gets the landed rows it needs, by (source, token).
  void offer_landed() {
    const auto num_rows = static_cast<int32_t>(hosts_->landing_offsets.back());
    const size_t words = exchange_.need_words();
    std::vector<int64_t> offsets = {0};
    for (const int neighbour : map_.neighbours()) {
      for (int32_t row = 0; row < num_rows; ++row) {
        const uint64_t* mask = hosts_->landing_needs.data() + static_cast<size_t>(row) * words;
        if (NeedMask::get(mask, map_.local_rank_of(neighbour))) landed_index_.push_back(row);
      }
      offsets.push_back(static_cast<int64_t>(landed_index_.size()));
      const int64_t count = offsets.back() - offsets[offsets.size() - 2];
      exchange_.count_traffic(neighbour, count * static_cast<int64_t>(format_.wire_bytes()));
    }
    landed_.offer({landing_.data(), format_.wire_bytes(), landed_index_}, offsets);
    landed_.post();
    std::vector<int64_t> counts(map_.neighbours().size(), 0);
    for (int source = 0; source < exchange_.group().size(); ++source) {
      if (exchange_.same_host(source)) continue;
      counts[map_.local_rank_of(map_.landing_rank(source, map_.host()))] += receive_.row_counts[source];
    }
    landed_arrival_ = landed_.arrival(std::move(counts));
  }

  HierarchicalExchange& exchange_;
  const HostMap& map_;
  const DispatchPlan& plan_;
  const ReceiveCounts& receive_;
  std::shared_ptr<HostRoute> hosts_;
  RowFormat format_;
  HostShare own_, landed_;
  Request own_arrival_, landed_arrival_;
  std::vector<Request> messages_;
  Buffer packed_;  // rows for other hosts
  Buffer landing_buffer_;
  std::span<std::byte> landing_;  // rows from other hosts, by (landing source, token)
  Buffer copies_;
  std::vector<int32_t> own_index_, landed_index_, index_;
};

}  // namespace

std::unique_ptr<RowTransfer> make_host_dispatch(const HierarchicalRoute& route, const RowFormat& format) {
  return std::make_unique<HostDispatch>(route, format);
}

}  // namespace cadre
