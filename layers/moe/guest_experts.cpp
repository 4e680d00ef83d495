// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/guest_experts.hpp"

#include <algorithm>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

size_t grad_bytes(Expert& expert) {
  size_t bytes = 0;
  expert.each_parameter([&](const Parameter& weight) { bytes += whole_cache_lines(weight.value.bytes()); });
  return bytes;
}

}  // namespace

Expert& GuestExperts::expert(int id, int owner, int index, uint64_t version) {
  const auto [found, is_new] = guests_.try_emplace(id);
  Guest& guest = found->second;
  if (is_new) {
    guest.owner = owner;
    guest.expert = make_expert(fmt::format("{}.{}", prefix_, options_.global_id(id)), options_, id);
    const std::vector<std::byte*>& values = weights_.values[static_cast<size_t>(owner)][static_cast<size_t>(index)];
    size_t next = 0;
    guest.expert->each_parameter([&](Parameter& weight) {
      CADRE_ASSERT(next < values.size());
      weight.value = weight.value.with_memory(values[next++], weight.value.dtype());
    });
    if (weights_.with_grad) {
      const size_t bytes = grad_bytes(*guest.expert);
      if (unwritten_grads_.bytes() < bytes) unwritten_grads_ = Buffer(bytes);
      place_grads(*guest.expert, unwritten_grads_.data());
    }
  }
  guest.is_needed = true;
  guest.expert->each_parameter([version](Parameter& weight) { weight.version = version; });
  return *guest.expert;
}

void GuestExperts::place_grads(Expert& expert, std::byte* memory) const {
  expert.each_parameter([&](Parameter& weight) {
    weight.grad = weight.value.with_memory(memory, weight.value.dtype());
    weight.grad_is_zero = true;
    memory += whole_cache_lines(weight.value.bytes());
  });
}

void GuestExperts::begin_grads(const Expert& expert) {
  const auto found = std::ranges::find_if(
      guests_, [&](const auto& id_and_guest) { return id_and_guest.second.expert.get() == &expert; });
  CADRE_ASSERT(found != guests_.end());
  Guest& guest = found->second;
  if (!guest.grads.empty()) return;
  guest.grads = pool_.take(grad_bytes(*guest.expert));
  place_grads(*guest.expert, guest.grads.data());
}

void GuestExperts::forget_grads() {
  std::erase_if(guests_, [](const auto& id_and_guest) { return !id_and_guest.second.is_needed; });
  for (auto& [id, guest] : guests_) {
    guest.is_needed = false;
    if (guest.grads.empty()) continue;
    taken_.push_back(std::move(guest.grads));
    place_grads(*guest.expert, unwritten_grads_.data());
  }
  for (Buffer& buffer : taken_) pool_.give_back(std::move(buffer));
  taken_.clear();
}

std::vector<OwnedValues> GuestExperts::take_grads(int rank) {
  std::vector<OwnedValues> all;
  for (auto& [id, guest] : guests_) {
    if (guest.grads.empty()) continue;
    guest.expert->each_parameter([&](const Parameter& weight) {
      all.push_back({{weight.grad.data<float>(), static_cast<size_t>(weight.grad.numel())},
                     guest.grads.share(),
                     guest.owner,
                     {rank}});
    });
    taken_.push_back(std::move(guest.grads));
    place_grads(*guest.expert, unwritten_grads_.data());
  }
  return all;
}

}  // namespace cadre
