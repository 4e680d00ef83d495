// SPDX-License-Identifier: Apache-2.0
// One message a pair of ranks.
#include <cstring>
#include <utility>

#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

class MessageTransfer : public RowTransfer {
 public:
  MessageTransfer(GroupExchange& exchange, const Route& route, Direction direction, Unit unit, const RowFormat& format)
      : exchange_(exchange),
        sides_(sides_of(route, direction, unit)),
        tokens_(direction == Direction::to_tokens ? token_order(route.plan, unit) : TokenOrder{}),
        format_(format),
        wire_bytes_(format.wire_bytes()),
        me_(static_cast<size_t>(exchange.group().rank())),
        received_(exchange.pool().take(static_cast<size_t>(sides_.in.total()) * wire_bytes_)) {}

  ~MessageTransfer() override {
    BufferPool& pool = exchange_.pool();
    pool.give_back(std::move(decoded_));
    if (finished_.done()) {
      pool.give_back(std::move(received_));
      pool.give_back(std::move(packed_));
    } else {
      finished_.own(std::move(received_));
      finished_.own(std::move(packed_));
    }
  }

  void pack(const Elements& rows) override {
    encode(rows, me_, received_.data() + static_cast<size_t>(sides_.in.offsets[me_]) * wire_bytes_);
    if (format_.wire == Wire::same && rows.index.empty() && rows.stride == wire_bytes_) {
      message_ = rows.base;
      return;
    }
    packed_ = exchange_.pool().take(static_cast<size_t>(sides_.out.total()) * wire_bytes_);
    for (size_t peer = 0; peer < sides_.out.counts.size(); ++peer) {
      if (peer == me_) continue;
      encode(rows, peer, packed_.data() + static_cast<size_t>(sides_.out.offsets[peer]) * wire_bytes_);
    }
    message_ = packed_.data();
  }

  void start() override {
    send_counts_ = sides_.out.counts;
    receive_counts_ = sides_.in.counts;
    send_counts_[me_] = 0;  // already in place
    receive_counts_[me_] = 0;
    for (size_t peer = 0; peer < send_counts_.size(); ++peer) {
      exchange_.count_traffic(static_cast<int>(peer), send_counts_[peer] * static_cast<int64_t>(wire_bytes_));
    }
    finished_ = exchange_.group().transport().all_to_all_rows({message_, send_counts_, sides_.out.offsets},
                                                              {received_.data(), receive_counts_, sides_.in.offsets},
                                                              wire_bytes_);
  }

  Elements unpack() override {
    if (format_.wire == Wire::same) return {received_.data(), wire_bytes_, tokens_.index, tokens_.offsets};
    const auto count = static_cast<size_t>(sides_.in.total());
    decoded_ = exchange_.pool().take(count * format_.row_bytes());
    for (size_t row = 0; row < count; ++row) {
      decode_row(format_, received_.data() + row * wire_bytes_, decoded_.data() + row * format_.row_bytes());
    }
    return {decoded_.data(), format_.row_bytes(), tokens_.index, tokens_.offsets};
  }

 private:
  void encode(const Elements& rows, size_t peer, std::byte* into) const {
    const int64_t first = sides_.out.offsets[peer];
    for (int64_t i = 0; i < sides_.out.counts[peer]; ++i, into += wire_bytes_) {
      encode_row(format_, rows.at(first + i), into);
    }
  }

  GroupExchange& exchange_;
  Sides sides_;
  TokenOrder tokens_;
  RowFormat format_;
  size_t wire_bytes_;
  size_t me_;
  std::vector<int64_t> send_counts_, receive_counts_;
  const std::byte* message_ = nullptr;
  Buffer packed_;
  Buffer received_;
  Buffer decoded_;
};

}  // namespace

std::unique_ptr<RowTransfer> make_message_transfer(GroupExchange& exchange, const Route& route, Direction direction,
                                                   Unit unit, const RowFormat& format) {
  return std::make_unique<MessageTransfer>(exchange, route, direction, unit, format);
}

}  // namespace cadre
