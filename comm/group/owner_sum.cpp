// SPDX-License-Identifier: Apache-2.0
#include "comm/group/owner_sum.hpp"

#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"

namespace cadre {
namespace {

class OwnerSum : public PendingOperation {
 public:
  OwnerSum(const Communicator& group, std::vector<OwnedValues> all, int tag) : all_(std::move(all)) {
    std::vector<Request> messages;
    for (const OwnedValues& held : all_) {
      if (held.values.empty()) continue;
      if (held.owner != group.rank()) {
        messages.push_back(group.send(std::as_bytes(held.values), held.keeper, held.owner, tag));
        continue;
      }
      for (const int guest : held.guests) {
        Buffer arrived(held.values.size_bytes());
        messages.push_back(group.receive(arrived.span(), arrived.share(), guest, tag));
        arrived_.push_back({held.values, std::move(arrived)});
      }
    }
    for (Request& message : messages) message.hide();
    messages_ = all_of(std::move(messages));
  }

  bool test() override {
    if (!messages_.test()) return false;
    for (const Arrived& one : arrived_) {
      const float* guest = one.values.as<float>();
      for (size_t i = 0; i < one.to.size(); ++i) one.to[i] += guest[i];
    }
    arrived_.clear();
    return true;
  }
  std::string missing() const override { return messages_.missing(); }
  void abandon() noexcept override { messages_ = Request(); }  // each is abandoned for itself

 private:
  struct Arrived {
    std::span<float> to;
    Buffer values;
  };

  std::vector<OwnedValues> all_;
  Request messages_;
  std::vector<Arrived> arrived_;  // in the order of the sum
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
