// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/host_share.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr size_t kPage = 4096;

size_t whole_pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Waits until a word of each peer's notice has reached the epoch.
class AllPosted : public PendingOperation {
 public:
  using Word = std::atomic_ref<uint64_t> (Notice::*)() const;

  AllPosted(const HostMemory& memory, size_t kind, uint64_t epoch, Word word)
      : memory_(memory), kind_(kind), epoch_(epoch), word_(word) {}

  bool test() override {
    memory_.host().transport().progress();
    while (next_ < memory_.host().size() && has_posted(next_)) ++next_;
    return next_ == memory_.host().size();
  }
  std::string missing() const override {
    std::string text;
    for (int peer = next_; peer < memory_.host().size(); ++peer) {
      if (has_posted(peer)) continue;
      text += fmt::format("{}rank {}", text.empty() ? "" : ", ", memory_.host().transport().world_rank(peer));
    }
    return text;
  }

 private:
  bool has_posted(int peer) const {
    const Notice notice = memory_.board().notice(peer, kind_, epoch_);
    return (notice.*word_)().load(std::memory_order_acquire) > epoch_;
  }

  const HostMemory& memory_;
  size_t kind_;
  uint64_t epoch_;
  Word word_;
  int next_ = 0;  // all peers before this one have
};

// Elements that lie at `addresses`, by base, stride and index: nothing is copied. False when no 32-bit index reaches them
// all.
bool reach(std::span<const std::byte* const> addresses, size_t element_bytes, std::vector<int32_t>& index,
           Elements& elements) {
  index.clear();
  elements.index = index;
  elements.stride = element_bytes;
  if (addresses.empty()) return true;
  const std::byte* base = *std::min_element(addresses.begin(), addresses.end());
  size_t unit = element_bytes;  // of which every element is a whole number away from the base
  for (const std::byte* address : addresses) unit = std::gcd(unit, static_cast<size_t>(address - base));
  index.reserve(addresses.size());
  for (const std::byte* address : addresses) {
    const size_t distance = static_cast<size_t>(address - base) / unit;
    if (distance > static_cast<size_t>(std::numeric_limits<int32_t>::max())) return false;
    index.push_back(static_cast<int32_t>(distance));
  }
  elements.base = base;
  elements.stride = unit;
  elements.index = index;
  return true;
}

}  // namespace

HostMemory::HostMemory(const Communicator& host, int64_t index_capacity, size_t space_bytes)
    : host_(host),
      board_bytes_(whole_pages(Board::bytes(host.size(), index_capacity))),
      memory_(host.transport().share(board_bytes_ + whole_pages(std::max<size_t>(space_bytes, 1)))),
      board_(*memory_, host.size(), index_capacity) {
  // Nothing has been posted yet, and everyone knows before anyone posts.
  std::memset(memory_->of(host.rank()).data(), 0, Board::bytes(host.size(), index_capacity));
  Request all_clear = host.barrier();
  wait(all_clear);
}

bool HostMemory::holds(const std::byte* element) const {
  const std::span<std::byte> mine = space();
  return element >= mine.data() && element < mine.data() + mine.size();
}

// All notices are there, and the messages of those who could not share.
class HostShare::Arrival : public PendingOperation {
 public:
  Arrival(HostShare& share, std::vector<Request> messages)
      : share_(share),
        posted_(share.memory_, share.kind_, share.epoch_, &Notice::posted),
        messages_(std::move(messages)) {}

  bool test() override {
    if (!all_posted_) {
      if (!posted_.test()) return false;
      all_posted_ = true;
      share_.receive_messages(messages_);
    }
    const bool done = std::all_of(messages_.begin(), messages_.end(), [](Request& message) { return message.test(); });
    if (done) share_.messages_under_way_ = false;
    return done;
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
  HostShare& share_;
  AllPosted posted_;
  bool all_posted_ = false;
  std::vector<Request> messages_;
};

HostShare::HostShare(HostMemory& memory, BufferPool& pool, size_t kind, size_t element_bytes)
    : memory_(memory),
      pool_(pool),
      kind_(kind),
      epoch_(memory.next_epoch(kind)),
      element_bytes_(element_bytes),
      me_(memory.host().rank()) {}

HostShare::~HostShare() {
  say_read();
  if (messages_under_way_) return;
  pool_.give_back(std::move(packed_));
  pool_.give_back(std::move(received_));
}

void HostShare::offer(const Elements& elements, std::span<const int64_t> offsets) {
  const Notice notice = notice_of(me_);
  const int64_t count = offsets.back();
  out_offsets_.assign(offsets.begin(), offsets.end());
  std::copy(offsets.begin(), offsets.end() - 1, notice.first());
  notice.num_index() = static_cast<int64_t>(elements.index.size());
  notice.stride() = static_cast<int64_t>(elements.stride);
  const bool in_place = memory_.holds(elements.base) && notice.num_index() <= memory_.board().index_capacity();
  notice.rows() = in_place ? elements.base - memory_.base() : Notice::kByMessage;
  if (in_place) {
    std::copy(elements.index.begin(), elements.index.end(), notice.index());
    return;
  }
  packed_ = pool_.take(static_cast<size_t>(count) * element_bytes_);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(packed_.data() + static_cast<size_t>(i) * element_bytes_, elements.at(i), element_bytes_);
  }
}

void HostShare::post() { notice_of(me_).posted().store(epoch_ + 1, std::memory_order_release); }

Request HostShare::arrival(std::vector<int64_t> counts) {
  in_counts_ = std::move(counts);
  in_offsets_ = offsets_of(in_counts_);
  std::vector<Request> messages;
  send_messages(messages);
  return {memory_.host().job(), describe("elements in shared memory"),
          std::make_unique<Arrival>(*this, std::move(messages))};
}

const std::byte* HostShare::at(int peer, int64_t i) const {
  if (comes_by_message(peer)) return received_.data() + static_cast<size_t>(in_offsets_[peer] + i) * element_bytes_;
  const Notice notice = notice_of(peer);
  const int64_t place = notice.first()[me_] + i;
  const int64_t num_index = notice.num_index();
  const bool has_index = num_index > 0;
  CADRE_CHECK_PEER(place >= 0 && (!has_index || (place < num_index && num_index <= memory_.board().index_capacity())),
                   fmt::format("rank {} offers {} elements, this rank expects element {}",
                               memory_.host().transport().world_rank(peer), num_index, place));
  const int64_t offset = notice.rows() + (has_index ? notice.index()[place] : place) * notice.stride();
  CADRE_CHECK_PEER(offset >= 0 && static_cast<size_t>(offset) + element_bytes_ <= memory_.bytes(),
                   fmt::format("rank {} offers an element at byte {} of the {} bytes that its host shares",
                               memory_.host().transport().world_rank(peer), offset, memory_.bytes()));
  return memory_.base() + offset;
}

void HostShare::say_read() const { notice_of(me_).read().store(epoch_ + 1, std::memory_order_release); }

Request HostShare::release() const {
  say_read();
  return {describe("peers to read from shared memory"),
          std::make_unique<AllPosted>(memory_, kind_, epoch_, &Notice::read)};
}

bool HostShare::comes_by_message(int peer) const {
  return in_counts_[peer] > 0 && notice_of(peer).rows() == Notice::kByMessage;
}

void HostShare::send_messages(std::vector<Request>& messages) {
  if (packed_.empty()) return;
  messages_under_way_ = true;
  for (int peer = 0; peer < memory_.host().size(); ++peer) {
    const size_t bytes = static_cast<size_t>(out_offsets_[peer + 1] - out_offsets_[peer]) * element_bytes_;
    if (bytes == 0) continue;
    const std::byte* first = packed_.data() + static_cast<size_t>(out_offsets_[peer]) * element_bytes_;
    messages.push_back(memory_.host().send({first, bytes}, packed_.share(), peer, static_cast<int>(kind_)));
  }
}

void HostShare::receive_messages(std::vector<Request>& messages) {
  for (int peer = 0; peer < memory_.host().size(); ++peer) {
    if (!comes_by_message(peer)) continue;
    messages_under_way_ = true;
    if (received_.empty()) received_ = pool_.take(static_cast<size_t>(in_offsets_.back()) * element_bytes_);
    const std::span<std::byte> into = received_.span().subspan(static_cast<size_t>(in_offsets_[peer]) * element_bytes_,
                                                               static_cast<size_t>(in_counts_[peer]) * element_bytes_);
    messages.push_back(memory_.host().receive(into, received_.share(), peer, static_cast<int>(kind_)));
  }
}

std::string HostShare::describe(const char* what) const {
  const Communicator& host = memory_.host();
  return fmt::format("{} (rank {}, one of {} on its host)", what, host.transport().world_rank(host.rank()),
                     host.size());
}

Elements arrange(const std::vector<ArrivedRow>& rows, const RowFormat& format, BufferPool& pool, Buffer& copies,
                 std::vector<int32_t>& index) {
  const size_t row_bytes = format.row_bytes();
  if (format.wire == Wire::same) {
    std::vector<const std::byte*> addresses;
    addresses.reserve(rows.size());
    for (const ArrivedRow& row : rows) addresses.push_back(row.at);
    Elements elements;
    if (reach(addresses, row_bytes, index, elements)) return elements;
  }
  copies = pool.take(rows.size() * row_bytes);
  std::vector<std::byte> wire(format.wire_bytes());
  index.resize(rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!rows[i].encoded) encode_row(format, rows[i].at, wire.data());
    decode_row(format, rows[i].encoded ? rows[i].at : wire.data(), copies.data() + i * row_bytes);
    index[i] = static_cast<int32_t>(i);
  }
  return {copies.data(), row_bytes, index};
}

}  // namespace cadre
