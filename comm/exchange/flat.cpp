// SPDX-License-Identifier: Apache-2.0
// The flat strategy: rows are packed by destination and each pair of ranks exchanges one message. Rows that stay on this
// rank are copied once, to the place where they are received. The other strategies send small elements this way too.
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

class MessageTransfer : public RowTransfer {
 public:
  MessageTransfer(const GroupRoute& route, Direction direction, Unit unit, const RowFormat& format)
      : exchange_(route.exchange()),
        sides_(route.sides(direction, unit)),
        tokens_(direction == Direction::to_tokens ? token_order(route.plan(), unit) : TokenOrder{}),
        format_(format),
        codec_(exchange_.codec(format)),
        wire_bytes_(format.wire_bytes()),
        me_(static_cast<size_t>(exchange_.rank())),
        received_(exchange_.pool(format).take(static_cast<size_t>(sides_.in.total()) * wire_bytes_)) {}

  ~MessageTransfer() override {
    BufferPool& pool = exchange_.pool(format_);
    pool.give_back(std::move(decoded_));
    if (!finished_.done()) return;
    pool.give_back(std::move(received_));
    pool.give_back(std::move(packed_rows_));
  }

  void pack(const Elements& rows) override {
    const std::vector<int64_t>& offsets = sides_.out.offsets;
    encode(rows, offsets[me_], offsets[me_ + 1], received_.data() + row_bytes_before(sides_.in.offsets[me_]));
    if (format_.wire == Wire::same && rows.index.empty() && rows.stride == wire_bytes_ && rows.owner) {
      message_ = rows.base;
      message_owner_ = rows.owner;
    } else {
      packed_rows_ = exchange_.pool(format_).take(row_bytes_before(sides_.out.total()));
      encode(rows, 0, offsets[me_], packed_rows_.data());
      encode(rows, offsets[me_ + 1], sides_.out.total(), packed_rows_.data() + row_bytes_before(offsets[me_ + 1]));
      message_ = packed_rows_.data();
      message_owner_ = packed_rows_.share();
    }
    packed_ = exchange_.packed(format_);
  }

  void start() override {
    CADRE_ASSERT(packed_.done());
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
    finished_.keep(std::move(message_owner_));
    finished_.keep(received_.share());
  }

  Elements unpack() override {
    if (format_.wire == Wire::same) return {received_.data(), wire_bytes_, tokens_.index, tokens_.offsets};
    decoded_ = exchange_.pool(format_).take(static_cast<size_t>(sides_.in.total()) * format_.row_bytes());
    codec_.decode(format_, {received_.data(), wire_bytes_}, sides_.in.total(), decoded_.data());
    return {decoded_.data(), format_.row_bytes(), tokens_.index, tokens_.offsets};
  }

 private:
  // Rows first .. end of what leaves this rank.
  void encode(const Elements& rows, int64_t first, int64_t end, std::byte* into) const {
    codec_.encode(format_, rows.part(first, end - first), end - first, into);
  }
  size_t row_bytes_before(int64_t row) const { return static_cast<size_t>(row) * wire_bytes_; }

  GroupExchange& exchange_;
  Sides sides_;
  TokenOrder tokens_;
  RowFormat format_;
  const RowCodec& codec_;
  size_t wire_bytes_;
  size_t me_;
  std::vector<int64_t> send_counts_, receive_counts_;
  const std::byte* message_ = nullptr;
  std::shared_ptr<const void> message_owner_;
  Buffer packed_rows_;
  Buffer received_;
  Buffer decoded_;
};

class FlatExchange : public GroupExchange {
 public:
  using GroupExchange::GroupExchange;

  std::string_view name() const override { return "flat"; }
  bool packs_later() const override { return has_device(); }
  std::unique_ptr<Route> route(DispatchPlan plan) override {
    return std::make_unique<GroupRoute>(*this, std::move(plan));
  }
};

}  // namespace

std::unique_ptr<RowTransfer> GroupRoute::transfer(Direction direction, Unit unit, const RowFormat& format) {
  return std::make_unique<MessageTransfer>(*this, direction, unit, format);
}

std::unique_ptr<Exchange> make_flat_exchange(const ExchangeSetup& setup) {
  return std::make_unique<FlatExchange>(setup);
}

}  // namespace cadre
