// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/partner_copies.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <span>
#include <unordered_map>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "comm/job/wait.hpp"
#include "runtime/checkpoint/state_holders.hpp"

namespace cadre {
namespace {

constexpr Position kTaking = {.phase = "copying to the partner"};
constexpr Position kRestoring = {.phase = "restoring from partners"};
constexpr int kSizesTag = 1;
constexpr int kEntriesTag = 2;
constexpr int kBytesTag = 3;

std::vector<NamedTensor> tensors_of(const ParameterStore& store, const Optimizer& optimizer,
                                    const ParameterChoice& chosen) {
  std::vector<NamedTensor> tensors = name_values(store, chosen);
  std::ranges::move(name_moments(optimizer, chosen), std::back_inserter(tensors));
  return tensors;
}

bool is_expert(const Parameter& parameter) { return parameter.placement == Placement::expert; }

// How far apart partners are.
int partner_stride(const Topology& topology) {
  return topology.num_hosts() == 1 ? 1 : std::max(1, topology.num_ranks() / topology.num_hosts());
}

}  // namespace

int partner_before(const Topology& topology, int rank) {
  return (rank + topology.num_ranks() - partner_stride(topology)) % topology.num_ranks();
}

void PartnerCopies::copy(const std::vector<NamedTensor>& tensors, Memory& memory, Copy& to) {
  to.entries.clear();
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    to.entries.push_back({hash_name(name), bytes, static_cast<int64_t>(tensor.bytes())});
    bytes += static_cast<int64_t>(tensor.bytes());
  }
  if (to.bytes.bytes() != static_cast<size_t>(bytes)) to.bytes = Buffer(static_cast<size_t>(bytes));
  for (size_t i = 0; i < tensors.size(); ++i) {
    memory.read(to.bytes.data() + to.entries[i].offset, tensors[i].memory.raw(), tensors[i].memory.bytes());
  }
}

void PartnerCopies::swap_with_partners(const Communicator& world, double deadline_seconds, const Copy& mine,
                                       Copy& theirs) {
  const Topology topology = discover_topology(world);
  const int to = (world.rank() + partner_stride(topology)) % world.size();
  const int from = partner_before(topology, world.rank());
  const auto trade = [&](const Buffer& out, Buffer& in, int tag) {
    Request sent = world.send(out.span(), out.share(), to, tag);
    Request received = world.receive(in.span(), in.share(), from, tag);
    wait(received, deadline_seconds, kTaking);
    wait(sent, deadline_seconds, kTaking);
  };
  const std::array<int64_t, 2> sizes = {static_cast<int64_t>(mine.entries.size()),
                                        static_cast<int64_t>(mine.bytes.bytes())};
  Request sent = world.send(sizes, to, kSizesTag);
  const auto their_sizes = wait(world.receive<std::array<int64_t, 2>>(from, kSizesTag), deadline_seconds, kTaking);
  wait(sent, deadline_seconds, kTaking);
  CADRE_CHECK_PEER(their_sizes[0] >= 0 && their_sizes[1] >= 0,
                   fmt::format("rank {} announces {} tensors of {} bytes", from, their_sizes[0], their_sizes[1]));
  Buffer my_entries(mine.entries.size() * sizeof(Entry));
  if (!my_entries.empty()) std::memcpy(my_entries.data(), mine.entries.data(), my_entries.bytes());
  Buffer entries(static_cast<size_t>(their_sizes[0]) * sizeof(Entry));
  trade(my_entries, entries, kEntriesTag);
  theirs.entries.assign(entries.as<Entry>(), entries.as<Entry>() + their_sizes[0]);
  const auto bytes = static_cast<size_t>(their_sizes[1]);
  for (const Entry& entry : theirs.entries) {
    const bool fits = entry.offset >= 0 && entry.bytes >= 0 && entry.offset <= their_sizes[1] - entry.bytes;
    CADRE_CHECK_PEER(fits, fmt::format("rank {} announces a tensor of {} bytes at byte {} of {}", from, entry.bytes,
                                       entry.offset, bytes));
  }
  if (theirs.bytes.bytes() != bytes) theirs.bytes = Buffer(bytes);
  trade(mine.bytes, theirs.bytes, kBytesTag);
}

void PartnerCopies::take(const Communicator& world, double deadline_seconds, const TrainProgress& progress,
                         const ParameterStore& store, const Optimizer& optimizer, const ParameterChoice& keeps_alone) {
  State& state = states_[0].step < states_[1].step ? states_[0] : states_[1];
  if (state.step < 0) state = {};  // a death came in between: what is under way keeps that memory
  state.step = -1;
  copy(tensors_of(store, optimizer, saved_parameter), store.memory(), state.own);
  if (world.size() > 1) {
    std::vector<NamedTensor> alone = name_values(store, is_expert);
    std::ranges::move(
        name_moments(optimizer,
                     [&](const Parameter& parameter) { return is_expert(parameter) || keeps_alone(parameter); }),
        std::back_inserter(alone));
    Copy copied;
    copy(alone, store.memory(), copied);
    swap_with_partners(world, deadline_seconds, copied, state.of_partner);
  }
  state.skipped_steps = optimizer.skipped_steps();
  state.updates = optimizer.updates();
  state.progress = progress;
  state.step = progress.step;
}

const PartnerCopies::State* PartnerCopies::newest_of_all(const Communicator& world, double deadline_seconds) const {
  const std::vector<int64_t> mine = {states_[0].step, states_[1].step};
  const std::vector<int64_t> all = wait(world.all_gather(mine), deadline_seconds, kRestoring);
  const State* newest = nullptr;
  for (const State& state : states_) {
    const auto everywhere = std::ranges::count(all, state.step) == world.size();
    if (state.step >= 0 && everywhere && (newest == nullptr || state.step > newest->step)) newest = &state;
  }
  return newest;
}

std::optional<TrainProgress> PartnerCopies::restore(const Communicator& world, double deadline_seconds,
                                                    const ParameterStore& store, Optimizer& optimizer) const {
  const State* state = newest_of_all(world, deadline_seconds);
  if (state == nullptr) return std::nullopt;

  struct Place {
    const std::byte* at;
    size_t bytes;
    std::shared_ptr<const void> owner;
  };
  std::unordered_map<uint64_t, Place> here;
  std::vector<uint64_t> held;
  for (const Copy* copy : {&state->own, &state->of_partner}) {
    for (const Entry& entry : copy->entries) {
      if (here.emplace(entry.key,
                       Place{copy->bytes.data() + entry.offset, static_cast<size_t>(entry.bytes), copy->bytes.share()})
              .second) {
        held.push_back(entry.key);
      }
    }
  }
  const std::vector<NamedTensor> tensors = tensors_of(store, optimizer, saved_parameter);
  std::vector<uint64_t> keys;
  for (const NamedTensor& tensor : tensors) keys.push_back(hash_name(tensor.name));
  const auto wanted = gather_lists(world, deadline_seconds, kRestoring, keys);
  const auto givers = givers_of(wanted, gather_lists(world, deadline_seconds, kRestoring, held));
  if (givers.empty()) return std::nullopt;

  // Messages of two ranks match in the order of what the receiver wants.
  const auto me = static_cast<size_t>(world.rank());
  std::vector<Buffer> arrived(tensors.size());
  std::vector<Request> under_way;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (givers[me][i] == world.rank()) continue;
    arrived[i] = Buffer(tensors[i].memory.bytes());
    under_way.push_back(world.receive(arrived[i].span(), arrived[i].share(), givers[me][i], kBytesTag));
  }
  for (size_t rank = 0; rank < wanted.size(); ++rank) {
    for (size_t i = 0; i < wanted[rank].size(); ++i) {
      if (rank == me || givers[rank][i] != world.rank()) continue;
      const Place place = here.at(wanted[rank][i]);
      under_way.push_back(world.send({place.at, place.bytes}, place.owner, static_cast<int>(rank), kBytesTag));
    }
  }
  for (Request& request : under_way) wait(request, deadline_seconds, kRestoring);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool own = givers[me][i] == world.rank();
    const Place place = own ? here.at(keys[i]) : Place{arrived[i].data(), arrived[i].bytes(), nullptr};
    CADRE_CHECK_PEER(place.bytes == tensors[i].memory.bytes(),
                     fmt::format("{} has another size than its copy", tensors[i].name));
    store.memory().write(tensors[i].memory.raw(), place.at, place.bytes);
  }
  for (Parameter* parameter : store.parameters()) ++parameter->version;
  optimizer.set_history(state->skipped_steps, state->updates);
  return state->progress;
}

size_t PartnerCopies::bytes() const {
  size_t sum = 0;
  for (const State& state : states_) sum += state.own.bytes.bytes() + state.of_partner.bytes.bytes();
  return sum;
}

}  // namespace cadre
