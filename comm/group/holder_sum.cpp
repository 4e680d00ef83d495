// SPDX-License-Identifier: Apache-2.0
#include "comm/group/holder_sum.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"

namespace cadre {
namespace {

std::span<float> part(const HeldValues& held, size_t j) {
  const size_t count = held.values.size();
  const size_t begin = count * j / held.holders.size();
  return held.values.subspan(begin, count * (j + 1) / held.holders.size() - begin);
}

size_t place_of(const HeldValues& held, int rank) {
  return static_cast<size_t>(std::ranges::find(held.holders, rank) - held.holders.begin());
}

// All parts but the own one, and that to all others.
int64_t bytes_sent(const std::vector<HeldValues>& all, int rank) {
  size_t count = 0;
  for (const HeldValues& held : all) {
    const size_t own = part(held, place_of(held, rank)).size();
    count += held.values.size() - own + own * (held.holders.size() - 1);
  }
  return static_cast<int64_t>(count * sizeof(float));
}

// Holder j of n adds up part j, then hands the sum to the others.
class HolderSum : public PendingOperation {
 public:
  HolderSum(const Communicator& group, std::vector<HeldValues> held, int tag, std::vector<Request> after)
      : group_(group), held_(std::move(held)), tag_(tag), under_way_(std::move(after)) {}

  bool test() override {
    while (all_done()) {
      under_way_.clear();
      num_done_ = 0;
      switch (phase_) {
        case Phase::wait: take(), collect(); break;
        case Phase::collect: add_up(), hand_out(); break;
        case Phase::hand_out: give_back(); return true;
      }
    }
    return false;
  }

  std::string missing() const override {
    for (const Request& request : under_way_) {
      if (!request.done()) return request.missing();
    }
    return "no rank";
  }
  void abandon() noexcept override { under_way_.clear(); }  // each is abandoned for itself

 private:
  enum class Phase { wait, collect, hand_out };

  // In the order of posting, which for messages of one sender and tag is that of their matching.
  bool all_done() {
    while (num_done_ < under_way_.size() && under_way_[num_done_].test()) ++num_done_;
    return num_done_ == under_way_.size();
  }

  size_t place_of_me(const HeldValues& held) const { return place_of(held, group_.rank()); }

  void send(std::span<const float> values, const std::shared_ptr<const void>& owner, int peer, int tag) {
    if (!values.empty()) begin(group_.send(std::as_bytes(values), owner, peer, tag));
  }
  void receive(std::span<float> values, const std::shared_ptr<const void>& owner, int peer, int tag) {
    if (!values.empty()) begin(group_.receive(std::as_writable_bytes(values), owner, peer, tag));
  }
  void begin(Request message) {
    message.hide();
    under_way_.push_back(std::move(message));
  }

  // Values in memory of a device are summed in a copy.
  void take() {
    for (HeldValues& held : held_) {
      if (held.memory->is_on_host()) continue;
      Buffer copy(held.values.size_bytes());
      held.memory->read(copy.data(), std::as_bytes(held.values).data(), copy.bytes());
      originals_.push_back({held.values, held.memory, copy.as<float>()});
      held.values = {copy.as<float>(), held.values.size()};
      held.owner = copy.share();
    }
  }
  void give_back() {
    for (const Original& original : originals_) {
      original.memory->write(std::as_writable_bytes(original.values).data(),
                             reinterpret_cast<const std::byte*>(original.copy), original.values.size_bytes());
    }
  }

  void collect() {
    phase_ = Phase::collect;
    for (const HeldValues& held : held_) {
      const std::span<float> mine = part(held, place_of_me(held));
      arrived_.emplace_back(mine.size() * held.holders.size() * sizeof(float));
      for (size_t j = 0; j < held.holders.size(); ++j) {
        if (held.holders[j] == group_.rank()) continue;
        receive({arrived_.back().as<float>() + j * mine.size(), mine.size()}, arrived_.back().share(), held.holders[j],
                2 * tag_);
        send(part(held, j), held.owner, held.holders[j], 2 * tag_);
      }
    }
  }

  void add_up() {
    for (size_t i = 0; i < held_.size(); ++i) {
      const size_t me = place_of_me(held_[i]);
      const std::span<float> mine = part(held_[i], me);
      float* const arrived = arrived_[i].as<float>();
      std::ranges::copy(mine, arrived + me * mine.size());
      std::copy_n(arrived, mine.size(), mine.begin());
      for (size_t j = 1; j < held_[i].holders.size(); ++j) {
        const float* const other = arrived + j * mine.size();
        for (size_t k = 0; k < mine.size(); ++k) mine[k] += other[k];
      }
    }
    arrived_.clear();
  }

  void hand_out() {
    phase_ = Phase::hand_out;
    for (const HeldValues& held : held_) {
      for (size_t j = 0; j < held.holders.size(); ++j) {
        if (held.holders[j] == group_.rank()) continue;
        receive(part(held, j), held.owner, held.holders[j], 2 * tag_ + 1);
        send(part(held, place_of_me(held)), held.owner, held.holders[j], 2 * tag_ + 1);
      }
    }
  }

  struct Original {
    std::span<float> values;
    Memory* memory;
    const float* copy;  // which its HeldValues own
  };

  const Communicator& group_;
  std::vector<HeldValues> held_;
  std::vector<Original> originals_;
  int tag_;
  Phase phase_ = Phase::wait;
  std::vector<Request> under_way_;
  size_t num_done_ = 0;          // of them, the first
  std::vector<Buffer> arrived_;  // [holders, my part] of each
};

}  // namespace

Request sum_over_holders(const Communicator& group, std::vector<HeldValues> held, int tag, std::vector<Request> after) {
  CADRE_ASSERT(tag >= 0 && tag <= kMaxHolderTag);
  const int64_t sent = bytes_sent(held, group.rank());
  return {group.job(),
          fmt::format("sum of {} values over their holders on '{}' (rank {} of {})", held.size(), group.name(),
                      group.rank(), group.size()),
          std::make_unique<HolderSum>(group, std::move(held), tag, std::move(after)), sent};
}

}  // namespace cadre
