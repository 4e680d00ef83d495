// SPDX-License-Identifier: Apache-2.0
#include "comm/group/reduction_queue.hpp"

#include <algorithm>
#include <deque>
#include <string>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Of all slices together, of few ranks: half of it, what a rank of two sends, takes 14 ms at 300 Mbit/s.
constexpr int64_t kPieceElements = int64_t{1} << 18;
// Of a message, where ranks are many: less would cost latency and no bandwidth.
constexpr int64_t kMessageElements = int64_t{1} << 13;
// Pieces under way: more while they are fast, so that links are busy between two polls.
constexpr size_t kFewestPieces = 2;
constexpr int64_t kFastNs = 4'000'000;
constexpr int64_t kSlowNs = 40'000'000;

size_t most_pieces(int num_ranks) {
  const auto bytes = static_cast<size_t>(ReductionQueue::piece_elements(num_ranks)) * sizeof(float);
  return std::max(kFewestPieces, ReductionQueue::kMostBytes / bytes);
}

struct Array {
  std::string what;
  std::span<float> values;
  std::shared_ptr<const void> owner;
  RankSlices slices;
  bool reduces;
  bool gathers;
  SumSink sink = {};        // of sums
  RankSlices holders = {};  // of values that are spread over the slices before these are gathered; else none
  int64_t next = 0;         // elements of each slice that are in pieces
  int num_open = 0;         // pieces

  bool all_begun() const { return next >= longest_of(slices); }
  bool done() const { return all_begun() && num_open == 0; }
};

// What the sink wants of elements [begin, end), which are summed.
void hand_over(const Array& array, int64_t begin, int64_t end) {
  const SumSink& sink = array.sink;
  if (sink.to.empty()) return;
  begin = std::max(begin, sink.first);
  end = std::min(end, sink.first + static_cast<int64_t>(sink.to.size()));
  const float* const sums = array.values.data();
  for (int64_t i = begin; i < end; ++i) {
    float& to = sink.to[static_cast<size_t>(i - sink.first)];
    to = sink.adds ? to + sums[i] : sums[i];
  }
}

struct Parts {  // by rank, in elements
  std::vector<int64_t> counts;
  std::vector<int64_t> offsets;
};

// A part of each slice.
struct SumPiece {
  std::shared_ptr<Array> array;
  std::vector<int64_t> counts;
  std::vector<int64_t> offsets;  // in the array
  int64_t begun_ns;
  Request request = {};
  Buffer received = {};  // as it travelled
};

}  // namespace

RankSlices equal_slices(int64_t count, int num_ranks) {
  RankSlices slices;
  for (int64_t r = 0; r <= num_ranks; ++r) slices.push_back(count * r / num_ranks);
  return slices;
}

int64_t longest_of(const RankSlices& slices) {
  int64_t longest = 0;
  for (size_t r = 0; r + 1 < slices.size(); ++r) longest = std::max(longest, slices[r + 1] - slices[r]);
  return longest;
}

int64_t ReductionQueue::piece_elements(int num_ranks) {
  return std::max({int64_t{1}, kPieceElements / num_ranks, kMessageElements}) * num_ranks;
}

size_t ReductionQueue::most_bytes(int num_ranks) {
  return most_pieces(num_ranks) * static_cast<size_t>(piece_elements(num_ranks)) * sizeof(float);
}

bool ReductionQueue::is_uneven(const RankSlices& slices) {
  return longest_of(slices) * static_cast<int64_t>(slices.size() - 1) > 2 * slices.back();
}

// Every piece passes both stages in the order of the calls, even where a stage has no work for it: all ranks then post the
// messages of each stage in the same order, whatever their speed.
class ReductionQueue::Pieces {
 public:
  Pieces(const Communicator& group, DType wire)
      : reducing_group_(group), gathering_group_(group.duplicate(group.name() + "/gather")), wire_(wire) {}

  const Communicator& group() const { return reducing_group_; }
  size_t wire_bytes(const Array& array) const { return size_of(array.reduces ? wire_ : DType::f32); }

  void add(std::shared_ptr<Array> array) { waiting_.push_back(std::move(array)); }

  void move_on() {
    while (begin_piece() || finish_reducing() || finish_gathering()) {
    }
    for (SumPiece& piece : reducing_) static_cast<void>(piece.request.test());
    for (SumPiece& piece : gathering_) static_cast<void>(piece.request.test());
  }

  std::string missing() const {
    for (const auto* stage : {&gathering_, &reducing_}) {
      for (const SumPiece& piece : *stage) {
        if (!piece.request.done()) return piece.request.missing();
      }
    }
    return "no rank";
  }

  // Each message is abandoned for itself.
  void abandon() {
    waiting_.clear();
    reducing_.clear();
    gathering_.clear();
  }

 private:
  int rank() const { return reducing_group_.rank(); }
  size_t me() const { return static_cast<size_t>(rank()); }
  int num_ranks() const { return reducing_group_.size(); }

  bool begin_piece() {
    while (!waiting_.empty() && waiting_.front()->all_begun()) waiting_.pop_front();
    if (waiting_.empty() || reducing_.size() + gathering_.size() >= limit_) return false;
    const std::shared_ptr<Array>& array = waiting_.front();
    const int64_t length = ReductionQueue::piece_elements(num_ranks()) / num_ranks();
    SumPiece piece = {.array = array, .counts = {}, .offsets = {}, .begun_ns = trace_clock_ns()};
    for (int r = 0; r < num_ranks(); ++r) {
      const int64_t begin =
          std::min(array->slices[static_cast<size_t>(r)] + array->next, array->slices[static_cast<size_t>(r) + 1]);
      piece.offsets.push_back(begin);
      piece.counts.push_back(std::min(length, array->slices[static_cast<size_t>(r) + 1] - begin));
    }
    array->next += length;
    ++array->num_open;
    if (array->reduces) begin_reducing(piece);
    if (!array->holders.empty()) begin_spreading(piece);
    reducing_.push_back(std::move(piece));
    return true;
  }

  // Part r of the piece goes to rank r.
  void begin_reducing(SumPiece& piece) const {
    const int64_t mine = piece.counts[me()];
    Parts received = {std::vector<int64_t>(piece.counts.size(), mine), {}};
    for (int64_t r = 0; r < num_ranks(); ++r) received.offsets.push_back(r * mine);
    piece.received = Buffer(static_cast<size_t>(num_ranks() * mine) * size_of(wire_));
    exchange(reducing_group_, piece, wire_, {piece.counts, piece.offsets}, piece.received.data(), std::move(received));
  }

  // Of part r of the piece, what this rank holds goes to rank r.
  void begin_spreading(SumPiece& piece) const {
    const RankSlices& holders = piece.array->holders;
    const auto common = [&](size_t part, size_t holder, Parts& parts) {
      const int64_t begin = std::max(piece.offsets[part], holders[holder]);
      const int64_t end = std::min(piece.offsets[part] + piece.counts[part], holders[holder + 1]);
      parts.offsets.push_back(begin);
      parts.counts.push_back(std::max<int64_t>(0, end - begin));
    };
    Parts sent;
    Parts received;
    for (size_t r = 0; r < piece.counts.size(); ++r) {
      common(r, me(), sent);
      common(me(), r, received);
    }
    auto* const values = reinterpret_cast<std::byte*>(piece.array->values.data());
    exchange(reducing_group_, piece, DType::f32, std::move(sent), values, std::move(received));
  }

  // This rank's part goes to all.
  void begin_gathering(SumPiece& piece) const {
    const size_t size = piece.counts.size();
    const Parts sent = {std::vector<int64_t>(size, piece.counts[me()]),
                        std::vector<int64_t>(size, piece.offsets[me()])};
    if (!gathers_rounded(*piece.array)) {
      auto* const values = reinterpret_cast<std::byte*>(piece.array->values.data());
      return exchange(gathering_group_, piece, DType::f32, sent, values, {piece.counts, piece.offsets});
    }
    Parts received = {piece.counts, {}};
    int64_t total = 0;
    for (const int64_t count : piece.counts) received.offsets.push_back(std::exchange(total, total + count));
    piece.received = Buffer(static_cast<size_t>(total) * sizeof(bf16));
    exchange(gathering_group_, piece, DType::bf16, sent, piece.received.data(), std::move(received));
  }

  bool gathers_rounded(const Array& array) const { return array.reduces && wire_ == DType::bf16; }

  // `sent` of the array; `received` in elements of `wire` from `memory` on.
  void exchange(const Communicator& group, SumPiece& piece, DType wire, Parts sent, std::byte* memory,
                Parts received) const {
    sent.counts[me()] = received.counts[me()] = 0;
    const float* const values = piece.array->values.data();
    const auto* base = reinterpret_cast<const std::byte*>(values);
    Buffer rounded;
    if (wire == DType::bf16) {
      int64_t total = 0;
      for (const int64_t count : sent.counts) total += count;
      rounded = Buffer(static_cast<size_t>(total) * sizeof(bf16));
      base = rounded.data();
      bf16* next = rounded.as<bf16>();
      for (size_t r = 0; r < sent.counts.size(); ++r) {
        const float* const part = values + std::exchange(sent.offsets[r], next - rounded.as<bf16>());
        next = std::transform(part, part + sent.counts[r], next, to_bf16);
      }
    }
    piece.request = group.transport().all_to_all_rows({base, sent.counts, sent.offsets},
                                                      {memory, received.counts, received.offsets}, size_of(wire));
    piece.request.hide();
    piece.request.keep(piece.array->owner);
    piece.request.keep(rounded.share());
    piece.request.keep(piece.received.share());
  }

  bool finish_reducing() {
    if (reducing_.empty() || !reducing_.front().request.test()) return false;
    SumPiece piece = std::move(reducing_.front());
    reducing_.pop_front();
    if (piece.array->reduces) add_up(piece);
    if (piece.array->gathers) begin_gathering(piece);
    gathering_.push_back(std::move(piece));
    return true;
  }

  bool finish_gathering() {
    if (gathering_.empty() || !gathering_.front().request.test()) return false;
    const SumPiece& piece = gathering_.front();
    if (piece.array->gathers && gathers_rounded(*piece.array)) widen(piece);
    if (piece.array->reduces) hand_to_sink(piece);
    --piece.array->num_open;
    if (piece.array->done()) piece.array->owner = piece.array->sink.owner = nullptr;
    const int64_t taken = trace_clock_ns() - piece.begun_ns;
    if (taken < kFastNs) limit_ = std::min(limit_ + 1, most_pieces(num_ranks()));
    if (taken > kSlowNs) limit_ = std::max(limit_ - 1, kFewestPieces);
    gathering_.pop_front();
    return true;
  }

  // In the order of ranks, this one's own term unrounded.
  void add_up(SumPiece& piece) const {
    const auto count = static_cast<size_t>(piece.counts[me()]);
    const std::span<float> sum = piece.array->values.subspan(static_cast<size_t>(piece.offsets[me()]), count);
    const std::vector<float> mine(sum.begin(), sum.end());
    const auto term = [&](size_t r, size_t i) {
      if (r == me()) return mine[i];
      return wire_ == DType::bf16 ? to_float(piece.received.as<bf16>()[r * count + i])
                                  : piece.received.as<float>()[r * count + i];
    };
    for (size_t i = 0; i < count; ++i) sum[i] = term(0, i);
    for (size_t r = 1; r < static_cast<size_t>(num_ranks()); ++r) {
      for (size_t i = 0; i < count; ++i) sum[i] += term(r, i);
    }
    piece.received = Buffer();
  }

  // Of the parts that this rank has the sums of.
  void hand_to_sink(const SumPiece& piece) const {
    for (size_t r = 0; r < piece.counts.size(); ++r) {
      if (r != me() && !piece.array->gathers) continue;
      hand_over(*piece.array, piece.offsets[r], piece.offsets[r] + piece.counts[r]);
    }
  }

  // All ranks have what travelled.
  void widen(const SumPiece& piece) const {
    const bf16* arrived = piece.received.as<bf16>();
    for (size_t r = 0; r < piece.counts.size(); ++r) {
      float* const part = piece.array->values.data() + piece.offsets[r];
      for (int64_t i = 0; i < piece.counts[r]; ++i) part[i] = to_float(r == me() ? to_bf16(part[i]) : arrived[i]);
      arrived += piece.counts[r];
    }
  }

  const Communicator& reducing_group_;
  Communicator gathering_group_;
  DType wire_;
  size_t limit_ = kFewestPieces;
  std::deque<std::shared_ptr<Array>> waiting_;
  std::deque<SumPiece> reducing_;
  std::deque<SumPiece> gathering_;
};

namespace {

class ArrayOperation : public PendingOperation {
 public:
  ArrayOperation(std::shared_ptr<ReductionQueue::Pieces> pieces, std::shared_ptr<Array> array)
      : pieces_(std::move(pieces)), array_(std::move(array)) {}

  bool test() override {
    pieces_->move_on();
    return array_->done();
  }
  std::string missing() const override { return pieces_->missing(); }
  void abandon() noexcept override {
    pieces_->abandon();
    pieces_ = nullptr;
  }
  bool outlives_job() const override { return false; }

 private:
  std::shared_ptr<ReductionQueue::Pieces> pieces_;
  std::shared_ptr<Array> array_;
};

Request start(const std::shared_ptr<ReductionQueue::Pieces>& pieces, Array array) {
  const Communicator& group = pieces->group();
  CADRE_ASSERT(array.slices.size() == static_cast<size_t>(group.size()) + 1 && array.slices.front() == 0 &&
               array.slices.back() <= static_cast<int64_t>(array.values.size()));
  const auto me = static_cast<size_t>(group.rank());
  const int64_t mine = array.slices[me + 1] - array.slices[me];
  const int64_t held = array.holders.empty() ? 0 : array.holders[me + 1] - array.holders[me];
  const int64_t sent = (array.reduces ? array.slices.back() - mine : 0) +
                       (array.gathers ? mine * (group.size() - 1) : 0) + std::max<int64_t>(0, held - mine);
  std::string what = fmt::format("{} of {} f32 on '{}' (rank {} of {})", array.what, array.slices.back(), group.name(),
                                 group.rank(), group.size());
  const auto shared = std::make_shared<Array>(std::move(array));
  if (group.size() == 1) hand_over(*shared, 0, shared->slices.back());
  if (group.size() == 1 || shared->all_begun()) return {};
  pieces->add(shared);
  return {group.job(), std::move(what), std::make_unique<ArrayOperation>(pieces, shared),
          sent * static_cast<int64_t>(pieces->wire_bytes(*shared))};
}

}  // namespace

ReductionQueue::ReductionQueue(const Communicator& group, DType wire)
    : pieces_(std::make_shared<Pieces>(group, wire)) {}

Request ReductionQueue::reduce_scatter(std::span<float> values, std::shared_ptr<const void> owner, RankSlices slices,
                                       SumSink sink) {
  return start(pieces_, {"reduce_scatter", values, std::move(owner), std::move(slices), /*reduces=*/true,
                         /*gathers=*/false, std::move(sink)});
}

Request ReductionQueue::all_gather(std::span<float> values, std::shared_ptr<const void> owner, RankSlices slices) {
  Array array = {"all_gather", values, std::move(owner), std::move(slices), /*reduces=*/false, /*gathers=*/true};
  if (is_uneven(array.slices)) {
    array.holders = std::exchange(array.slices, equal_slices(array.slices.back(), group().size()));
  }
  return start(pieces_, std::move(array));
}

Request ReductionQueue::all_reduce(std::span<float> values, std::shared_ptr<const void> owner, SumSink sink) {
  RankSlices slices = equal_slices(static_cast<int64_t>(values.size()), group().size());
  return start(pieces_, {"all_reduce", values, std::move(owner), std::move(slices), /*reduces=*/true, /*gathers=*/true,
                         std::move(sink)});
}

const Communicator& ReductionQueue::group() const { return pieces_->group(); }

}  // namespace cadre
