// SPDX-License-Identifier: Apache-2.0
// The shared strategy, for ranks of one host: a sender says where its rows are, the receiver reads them there, in
// whatever order it needs them. No row is packed, sent or unpacked. Rows outside of the exchange's memory come as
// messages instead; small elements always do.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/exchange/board.hpp"
#include "comm/exchange/group_exchange.hpp"

namespace cadre {
namespace {

constexpr size_t kPage = 4096;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

class SharedExchange : public GroupExchange {
 public:
  explicit SharedExchange(const ExchangeSetup& setup)
      : GroupExchange(setup),
        index_capacity_(2 * setup.max_tokens * setup.top_k),
        board_bytes_(whole_pages(Board::bytes(setup.group.size(), index_capacity_))),
        memory_(setup.group.transport().share(board_bytes_ + whole_pages(std::max<size_t>(setup.memory_bytes, 1)))),
        board_(*memory_, setup.group.size(), index_capacity_) {}

  std::string_view name() const override { return "shared"; }
  std::span<std::byte> memory() override { return memory_->of(group().rank()).subspan(board_bytes_); }
  std::unique_ptr<RowTransfer> transfer(const Route& route, Direction direction, Unit unit,
                                        const RowFormat& format) override;

  const Board& board() const { return board_; }
  const std::byte* base() const { return memory_->base(); }
  Notice notice(int rank, size_t kind, uint64_t epoch) const { return board_.notice(rank, kind, epoch); }

 private:
  int64_t index_capacity_;
  size_t board_bytes_;
  std::unique_ptr<SharedMemory> memory_;
  Board board_;
  uint64_t epochs_[Board::kNumKinds] = {};
};

// Waits until a word of each peer's notice has reached the epoch.
class AllPosted : public PendingOperation {
 public:
  using Word = std::atomic_ref<uint64_t> (Notice::*)() const;

  AllPosted(SharedExchange& exchange, size_t kind, uint64_t epoch, Word word)
      : exchange_(exchange), kind_(kind), epoch_(epoch), word_(word) {}

  bool test() override {
    exchange_.group().transport().progress();
    while (next_ < exchange_.group().size() && has_posted(next_)) ++next_;
    return next_ == exchange_.group().size();
  }
  std::string missing() const override {
    std::string text;
    for (int peer = next_; peer < exchange_.group().size(); ++peer) {
      if (has_posted(peer)) continue;
      text += fmt::format("{}rank {}", text.empty() ? "" : ", ", exchange_.group().transport().world_rank(peer));
    }
    return text;
  }

 private:
  bool has_posted(int peer) const {
    const Notice notice = exchange_.notice(peer, kind_, epoch_);
    return (notice.*word_)().load(std::memory_order_acquire) > epoch_;
  }

  SharedExchange& exchange_;
  size_t kind_;
  uint64_t epoch_;
  Word word_;
  int next_ = 0;  // all peers before this one have
};

class SharedTransfer : public RowTransfer {
 public:
  SharedTransfer(SharedExchange& exchange, const Route& route, Direction direction, Unit unit, const RowFormat& format,
                 uint64_t epoch)
      : exchange_(exchange),
        transport_(exchange.group().transport()),
        sides_(sides_of(route, direction, unit)),
        tokens_(direction == Direction::to_tokens ? token_order(route.plan, unit) : TokenOrder{}),
        format_(format),
        kind_(Board::kind_of(direction, unit)),
        epoch_(epoch),
        me_(transport_.rank()) {}

  ~SharedTransfer() override {
    say_read();
    for (Buffer* buffer : {&packed_, &received_}) {
      if (finished_.done()) {
        exchange_.pool().give_back(std::move(*buffer));
      } else {
        finished_.own(std::move(*buffer));
      }
    }
  }

  void pack(const Elements& rows) override {
    const Notice notice = exchange_.notice(me_, kind_, epoch_);
    const int64_t count = sides_.out.total();
    const auto num_index = static_cast<int64_t>(rows.index.size());
    by_message_ = count > 0 && (!in_shared_memory(rows.base) || num_index > exchange_.board().index_capacity());
    notice.rows() = by_message_ || count == 0 ? Notice::kByMessage : rows.base - exchange_.base();
    notice.num_index() = num_index;
    std::copy(sides_.out.offsets.begin(), sides_.out.offsets.end() - 1, notice.first());
    if (!by_message_) {
      CADRE_ASSERT(count == 0 || rows.stride == format_.row_bytes());
      std::copy(rows.index.begin(), rows.index.end(), notice.index());
      return;
    }
    packed_ = exchange_.pool().take(static_cast<size_t>(count) * format_.row_bytes());
    for (int64_t i = 0; i < count; ++i) std::memcpy(packed_row(i), rows.at(i), format_.row_bytes());
  }

  void start() override {
    exchange_.notice(me_, kind_, epoch_).posted().store(epoch_ + 1, std::memory_order_release);
    std::vector<Request> messages;
    for (int peer = 0; peer < transport_.size(); ++peer) {
      const size_t bytes = static_cast<size_t>(sides_.out.counts[peer]) * format_.row_bytes();
      exchange_.count_traffic(peer, static_cast<int64_t>(bytes));
      if (!by_message_ || bytes == 0) continue;
      messages.push_back(transport_.send({packed_row(sides_.out.offsets[peer]), bytes}, peer, tag()));
    }
    finished_ = Request(describe("rows in shared memory"), std::make_unique<Arrival>(*this, std::move(messages)));
  }

  Elements unpack() override {
    if (must_copy()) return copied();
    size_t unit = format_.row_bytes();  // of which every row is a whole number away from the base
    for (int peer = 0; peer < transport_.size(); ++peer) {
      if (sides_.in.counts[peer] > 0) unit = std::gcd(unit, static_cast<size_t>(notice_of(peer).rows()));
    }
    const std::byte* base = exchange_.base();
    for (int64_t i = 0; const std::byte* row : rows_by_order()) {
      const auto distance = static_cast<size_t>(row - base) / unit;
      if (distance > static_cast<size_t>(std::numeric_limits<int32_t>::max())) return copied();
      index_.resize(static_cast<size_t>(sides_.in.total()));
      index_[i++] = static_cast<int32_t>(distance);
    }
    return {base, unit, index_, tokens_.offsets};
  }

  Request& release() override {
    say_read();
    released_ = Request(describe("peers to read rows in shared memory"),
                        std::make_unique<AllPosted>(exchange_, kind_, epoch_, &Notice::read));
    return released_;
  }

 private:
  // All notices are there, and the messages of those who could not share.
  class Arrival : public PendingOperation {
   public:
    Arrival(SharedTransfer& transfer, std::vector<Request> messages)
        : transfer_(transfer),
          posted_(transfer.exchange_, transfer.kind_, transfer.epoch_, &Notice::posted),
          messages_(std::move(messages)) {}

    bool test() override {
      if (!all_posted_) {
        if (!posted_.test()) return false;
        all_posted_ = true;
        transfer_.receive_messages(messages_);
      }
      return std::all_of(messages_.begin(), messages_.end(), [](Request& message) { return message.test(); });
    }
    std::string missing() const override {
      if (!all_posted_) return posted_.missing();
      std::string text;
      for (const Request& message : messages_) {
        if (!message.done()) text += (text.empty() ? "" : ", ") + message.missing();
      }
      return text;
    }

   private:
    SharedTransfer& transfer_;
    AllPosted posted_;
    bool all_posted_ = false;
    std::vector<Request> messages_;
  };

  bool in_shared_memory(const std::byte* rows) const {
    const std::span<std::byte> memory = exchange_.memory();
    return rows >= memory.data() && rows < memory.data() + memory.size();
  }

  std::byte* packed_row(int64_t i) { return packed_.data() + static_cast<size_t>(i) * format_.row_bytes(); }

  Notice notice_of(int peer) const { return exchange_.notice(peer, kind_, epoch_); }

  bool comes_by_message(int peer) const {
    return sides_.in.counts[peer] > 0 && notice_of(peer).rows() == Notice::kByMessage;
  }

  int tag() const { return static_cast<int>(kind_); }

  // Receives from those who could not share their rows.
  void receive_messages(std::vector<Request>& messages) {
    const size_t row_bytes = format_.row_bytes();
    if (must_copy()) received_ = exchange_.pool().take(static_cast<size_t>(sides_.in.total()) * row_bytes);
    for (int peer = 0; peer < transport_.size(); ++peer) {
      if (!comes_by_message(peer)) continue;
      const std::span<std::byte> into =
          received_.span().subspan(static_cast<size_t>(sides_.in.offsets[peer]) * row_bytes,
                                   static_cast<size_t>(sides_.in.counts[peer]) * row_bytes);
      messages.push_back(transport_.receive(into, peer, tag()));
    }
  }

  bool must_copy() const {
    if (format_.wire != Wire::same) return true;
    for (int peer = 0; peer < transport_.size(); ++peer) {
      if (comes_by_message(peer)) return true;
    }
    return false;
  }

  // Where each row that came is: by (source, element), or by token.
  std::vector<const std::byte*> rows_by_order() const {
    std::vector<const std::byte*> rows;
    rows.reserve(static_cast<size_t>(sides_.in.total()));
    for (int peer = 0; peer < transport_.size(); ++peer) {
      const Notice notice = notice_of(peer);
      const std::byte* base = exchange_.base() + notice.rows();
      const int64_t first = notice.first()[me_];
      for (int64_t i = first; i < first + sides_.in.counts[peer]; ++i) {
        rows.push_back(base + (notice.num_index() > 0 ? notice.index()[i] : i) * format_.row_bytes());
      }
    }
    if (tokens_.index.empty()) return rows;
    std::vector<const std::byte*> by_token;
    by_token.reserve(rows.size());
    for (const int32_t i : tokens_.index) by_token.push_back(rows[i]);
    return by_token;
  }

  // The slow way: one buffer with all rows in order of arrival, as the wire would have left them.
  Elements copied() {
    const size_t row_bytes = format_.row_bytes();
    if (received_.empty()) received_ = exchange_.pool().take(static_cast<size_t>(sides_.in.total()) * row_bytes);
    std::vector<std::byte> wire(format_.wire_bytes());
    for (int peer = 0; peer < transport_.size(); ++peer) {
      const Notice notice = notice_of(peer);
      const int64_t first = notice.first()[me_];
      for (int64_t i = 0; i < sides_.in.counts[peer]; ++i) {
        std::byte* into = received_.data() + static_cast<size_t>(sides_.in.offsets[peer] + i) * row_bytes;
        const std::byte* from = into;
        if (!comes_by_message(peer)) {
          const int64_t place = notice.num_index() > 0 ? notice.index()[first + i] : first + i;
          from = exchange_.base() + notice.rows() + static_cast<size_t>(place) * row_bytes;
        }
        if (format_.wire != Wire::same) {
          encode_row(format_, from, wire.data());
          decode_row(format_, wire.data(), into);
        } else if (from != into) {
          std::memcpy(into, from, row_bytes);
        }
      }
    }
    return {received_.data(), row_bytes, tokens_.index, tokens_.offsets};
  }

  void say_read() const { exchange_.notice(me_, kind_, epoch_).read().store(epoch_ + 1, std::memory_order_release); }

  std::string describe(const char* what) const {
    return fmt::format("{} (rank {} of the {} of this host)", what, transport_.world_rank(me_), transport_.size());
  }

  SharedExchange& exchange_;
  Transport& transport_;
  Sides sides_;
  TokenOrder tokens_;
  RowFormat format_;
  size_t kind_;
  uint64_t epoch_;
  int me_;
  bool by_message_ = false;
  Buffer packed_;    // rows that lay elsewhere
  Buffer received_;  // where rows had to be copied
  std::vector<int32_t> index_;
};

std::unique_ptr<RowTransfer> SharedExchange::transfer(const Route& route, Direction direction, Unit unit,
                                                      const RowFormat& format) {
  if (format.row_bytes() < kSmallestRowInPlace) return make_message_transfer(*this, route, direction, unit, format);
  const uint64_t epoch = epochs_[Board::kind_of(direction, unit)]++;
  return std::make_unique<SharedTransfer>(*this, route, direction, unit, format, epoch);
}

}  // namespace

std::unique_ptr<Exchange> make_shared_exchange(const ExchangeSetup& setup) {
  CADRE_CHECK(setup.topology.num_hosts() == 1,
              fmt::format("exchange.strategy = shared on {} hosts", setup.topology.num_hosts()),
              "use hierarchical, which shares memory inside each host, or keep expert-parallel groups inside a host");
  // The memory of all ranks is laid out alike: as the one that wants most.
  std::vector<int64_t> largest = {setup.max_tokens, static_cast<int64_t>(setup.memory_bytes)};
  Request agreed = setup.group.all_reduce(std::span(largest), ReduceOp::max);
  wait(agreed);
  ExchangeSetup alike = setup;
  alike.max_tokens = largest[0];
  alike.memory_bytes = static_cast<size_t>(largest[1]);
  return std::make_unique<SharedExchange>(alike);
}

}  // namespace cadre
