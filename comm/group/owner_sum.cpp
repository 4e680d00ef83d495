// SPDX-License-Identifier: Apache-2.0
#include "comm/group/owner_sum.hpp"

#include <algorithm>
#include <deque>
#include <map>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"

namespace cadre {
namespace {

// Values travel in pieces: a few lie in a cache when they are added, and need little memory.
constexpr size_t kPieceFloats = size_t{64} << 10;
constexpr size_t kPieces = 4;  // under way between two ranks

size_t end_of_piece(size_t begin, size_t size) { return std::min(begin + kPieceFloats, size); }

// From this rank to one owner.
class GuestStream {
 public:
  explicit GuestStream(int owner) : owner_(owner) {}

  void add(const OwnedValues& held) { values_.push_back(&held); }

  bool test(const Communicator& group, int tag) {
    while (!under_way_.empty() && under_way_.front().test()) under_way_.pop_front();
    while (value_ < values_.size() && under_way_.size() < kPieces) {
      const OwnedValues& held = *values_[value_];
      const size_t end = end_of_piece(next_, held.values.size());
      under_way_.push_back(
          group.send(std::as_bytes(held.values.subspan(next_, end - next_)), held.keeper, owner_, tag));
      under_way_.back().hide();
      next_ = end;
      if (next_ < held.values.size()) continue;
      ++value_;
      next_ = 0;
    }
    return under_way_.empty();
  }
  std::string missing() const { return under_way_.empty() ? "" : under_way_.front().missing(); }

 private:
  int owner_;
  std::vector<const OwnedValues*> values_;
  size_t value_ = 0;  // that is sent next, from this float on
  size_t next_ = 0;
  std::deque<Request> under_way_;
};

// Values of this rank, and how far each of its guests is added.
struct OwnedSum {
  const OwnedValues* held;
  std::vector<size_t> added;  // [guests] floats

  // Whether all guests in front of this one are added up to `end`.
  bool may_add(size_t guest, size_t end) const { return guest == 0 || added[guest - 1] >= end; }
};

// From one guest to this rank.
class OwnerStream {
 public:
  explicit OwnerStream(int guest) : guest_(guest) {}

  void add(OwnedSum& sum, size_t place) { parts_.push_back({&sum, place}); }

  bool test(const Communicator& group, int tag) {
    receive(group, tag);
    while (!under_way_.empty() && under_way_.front().request.test() && add_first()) receive(group, tag);
    return under_way_.empty();
  }
  std::string missing() const { return under_way_.empty() ? "" : under_way_.front().request.missing(); }

 private:
  struct Part {
    OwnedSum* sum;
    size_t place;  // of the guest in its list
  };
  struct Piece {
    Request request;
    Buffer memory;
    Part part;
    size_t begin, end;  // floats
  };

  void receive(const Communicator& group, int tag) {
    while (part_ < parts_.size() && under_way_.size() < kPieces) {
      const Part& part = parts_[part_];
      const size_t size = part.sum->held->values.size();
      Piece piece = {{}, {}, part, next_, end_of_piece(next_, size)};
      const size_t bytes = (piece.end - piece.begin) * sizeof(float);
      if (free_.empty()) {
        piece.memory = Buffer(kPieceFloats * sizeof(float));
      } else {
        piece.memory = std::move(free_.back());
        free_.pop_back();
      }
      piece.request = group.receive(piece.memory.span().first(bytes), piece.memory.share(), guest_, tag);
      piece.request.hide();
      next_ = piece.end;
      if (next_ == size) {
        ++part_;
        next_ = 0;
      }
      under_way_.push_back(std::move(piece));
    }
  }

  // In its turn among the guests; else false.
  bool add_first() {
    Piece& piece = under_way_.front();
    OwnedSum& sum = *piece.part.sum;
    if (!sum.may_add(piece.part.place, piece.end)) return false;
    const float* arrived = piece.memory.as<float>();
    const std::span<float> to = sum.held->values.subspan(piece.begin, piece.end - piece.begin);
    for (size_t i = 0; i < to.size(); ++i) to[i] += arrived[i];
    sum.added[piece.part.place] = piece.end;
    free_.push_back(std::move(piece.memory));
    under_way_.pop_front();
    return true;
  }

  int guest_;
  std::vector<Part> parts_;
  size_t part_ = 0;  // that is received next, from this float on
  size_t next_ = 0;
  std::deque<Piece> under_way_;
  std::vector<Buffer> free_;
};

// Each stream goes on independently of the others, and the first piece that an owner has not yet added, in the order of its
// values and their guests, is the first of its stream: it can be added when it has arrived, so that every stream ends at last.
class OwnerSum : public PendingOperation {
 public:
  OwnerSum(const Communicator& group, std::vector<OwnedValues> all, int tag)
      : group_(group), all_(std::move(all)), tag_(tag) {
    for (const OwnedValues& held : all_) {
      if (held.values.empty()) continue;
      if (held.owner != group.rank()) {
        to_owners_.try_emplace(held.owner, held.owner).first->second.add(held);
        continue;
      }
      sums_.push_back({&held, std::vector<size_t>(held.guests.size(), 0)});
      for (size_t place = 0; place < held.guests.size(); ++place) {
        const int guest = held.guests[place];
        from_guests_.try_emplace(guest, guest).first->second.add(sums_.back(), place);
      }
    }
    OwnerSum::test();
  }

  bool test() override {
    bool done = true;
    for (auto& [owner, stream] : to_owners_) done &= stream.test(group_, tag_);
    for (auto& [guest, stream] : from_guests_) done &= stream.test(group_, tag_);
    return done;
  }
  std::string missing() const override {
    for (const auto& [guest, stream] : from_guests_) {
      if (std::string missing = stream.missing(); !missing.empty()) return missing;
    }
    for (const auto& [owner, stream] : to_owners_) {
      if (std::string missing = stream.missing(); !missing.empty()) return missing;
    }
    return "values that no rank has sent";
  }
  // Each message is abandoned for itself.
  void abandon() noexcept override {
    to_owners_.clear();
    from_guests_.clear();
  }

 private:
  const Communicator& group_;
  std::vector<OwnedValues> all_;
  int tag_;
  std::deque<OwnedSum> sums_;  // a deque does not move them
  std::map<int, GuestStream> to_owners_;
  std::map<int, OwnerStream> from_guests_;
};

int64_t bytes_to_owners(const std::vector<OwnedValues>& all, int rank) {
  int64_t bytes = 0;
  for (const OwnedValues& held : all) {
    if (held.owner != rank) bytes += static_cast<int64_t>(held.values.size_bytes());
  }
  return bytes;
}

}  // namespace

Request sum_at_owners(const Communicator& group, std::vector<OwnedValues> all, int tag) {
  const int64_t sent = bytes_to_owners(all, group.rank());
  return {group.job(),
          fmt::format("sum of {} values at their owners on '{}' (rank {} of {})", all.size(), group.name(),
                      group.rank(), group.size()),
          std::make_unique<OwnerSum>(group, std::move(all), tag), sent};
}

}  // namespace cadre
