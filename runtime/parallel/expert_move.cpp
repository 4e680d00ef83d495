// SPDX-License-Identifier: Apache-2.0
#include "runtime/parallel/expert_move.hpp"

#include <algorithm>
#include <array>
#include <numeric>
#include <unordered_map>

#include "comm/base/check.hpp"
#include "comm/base/random.hpp"
#include "runtime/checkpoint/state_holders.hpp"

namespace cadre {
namespace {

constexpr int kMoveTag = 1;
constexpr size_t kLeastPiece = 4096;  // bytes of one tensor in one message

// A tensor that goes to or comes from another rank.
struct Passage {
  std::byte* at = nullptr;
  size_t bytes = 0;
  int peer = 0;
};

struct Passages {
  std::vector<Passage> out, in;  // messages of two ranks match in the order of what the receiver wants
  size_t piece = 0;              // bytes of each tensor in one round, the same on all ranks
};

std::vector<uint64_t> keys_of(const std::vector<NamedTensor>& tensors) {
  std::vector<uint64_t> keys;
  for (const NamedTensor& tensor : tensors) keys.push_back(hash_name(tensor.name));
  return keys;
}

// Tensors whose memory has the state of another expert.
std::vector<NamedTensor> renamed(const std::vector<NamedTensor>& before, const std::vector<NamedTensor>& after) {
  std::unordered_map<const std::byte*, const NamedTensor*> was;
  for (const NamedTensor& tensor : before) was[tensor.memory.raw()] = &tensor;
  std::vector<NamedTensor> wanted;
  for (const NamedTensor& tensor : after) {
    const auto found = was.find(tensor.memory.raw());
    CADRE_CHECK(found != was.end() && found->second->memory.bytes() == tensor.memory.bytes(),
                fmt::format("{} has no memory of its size on this rank", tensor.name));
    if (found->second->name != tensor.name) wanted.push_back(tensor);
  }
  return wanted;
}

// The most tensors that any rank sends or receives.
size_t most_tensors(const std::vector<std::vector<int>>& givers) {
  size_t most = 1;
  std::vector<size_t> given(givers.size());
  for (const std::vector<int>& of_rank : givers) {
    most = std::max(most, of_rank.size());
    for (const int giver : of_rank) ++given[static_cast<size_t>(giver)];
  }
  return std::max(most, std::ranges::max(given));
}

Passages plan_passages(const Worker& worker, const std::vector<NamedTensor>& before,
                       const std::vector<NamedTensor>& wanted, size_t piece_bytes) {
  const Communicator& world = worker.world();
  const Position& at = worker.lanes().lane().position;
  const std::vector<uint64_t> held_keys = keys_of(before);
  const auto held = gather_lists(world, worker.deadline_seconds(), at, held_keys);
  const auto wanted_keys = gather_lists(world, worker.deadline_seconds(), at, keys_of(wanted));
  const auto givers = givers_of(wanted_keys, held);
  CADRE_CHECK(!givers.empty(), "an expert that should move is on no rank");

  std::unordered_map<uint64_t, const Tensor*> here;
  for (size_t i = 0; i < before.size(); ++i) here[held_keys[i]] = &before[i].memory;
  Passages passages;
  const auto me = static_cast<size_t>(world.rank());
  for (size_t i = 0; i < wanted.size(); ++i) {
    passages.in.push_back({wanted[i].memory.raw(), wanted[i].memory.bytes(), givers[me][i]});
  }
  for (size_t rank = 0; rank < givers.size(); ++rank) {
    for (size_t i = 0; i < givers[rank].size(); ++i) {
      if (givers[rank][i] != world.rank()) continue;
      const Tensor& tensor = *here.at(wanted_keys[rank][i]);
      passages.out.push_back({tensor.raw(), tensor.bytes(), static_cast<int>(rank)});
    }
  }
  passages.piece = std::max(kLeastPiece, piece_bytes / most_tensors(givers) / kLeastPiece * kLeastPiece);
  return passages;
}

size_t piece_at(const Passage& passage, size_t offset, size_t piece) {
  return offset < passage.bytes ? std::min(piece, passage.bytes - offset) : 0;
}

// One piece of every tensor. What leaves is copied before what arrives is written in its place.
void pass_pieces(const Worker& worker, Memory& memory, const Passages& passages, size_t offset, Buffer& out,
                 Buffer& in) {
  const Communicator& world = worker.world();
  std::vector<Request> under_way;
  std::byte* next = in.data();
  for (const Passage& passage : passages.in) {
    const size_t bytes = piece_at(passage, offset, passages.piece);
    if (bytes == 0) continue;
    under_way.push_back(world.receive({next, bytes}, in.share(), passage.peer, kMoveTag));
    next += bytes;
  }
  next = out.data();
  for (const Passage& passage : passages.out) {
    const size_t bytes = piece_at(passage, offset, passages.piece);
    if (bytes == 0) continue;
    memory.read(next, passage.at + offset, bytes);
    under_way.push_back(world.send({next, bytes}, out.share(), passage.peer, kMoveTag));
    next += bytes;
  }
  for (Request& request : under_way) worker.await(request);
  next = in.data();
  for (const Passage& passage : passages.in) {
    const size_t bytes = piece_at(passage, offset, passages.piece);
    if (bytes == 0) continue;
    memory.write(passage.at + offset, next, bytes);
    next += bytes;
  }
}

int64_t bytes_of(const std::vector<Passage>& passages) {
  return std::accumulate(passages.begin(), passages.end(), int64_t{0},
                         [](int64_t sum, const Passage& passage) { return sum + static_cast<int64_t>(passage.bytes); });
}

}  // namespace

MovedBytes move_experts(Worker& worker, const ExpertMaps& maps, const ExpertState& state, size_t piece_bytes) {
  worker.gradients().complete_values();
  worker.kernels().synchronize();
  worker.lane().enter("moving experts");
  std::vector<std::string> names;
  for (const Parameter* parameter : worker.store().parameters()) names.push_back(parameter->name());
  const std::vector<NamedTensor> before = state();
  worker.relocate(maps);
  const std::vector<NamedTensor> wanted = renamed(before, state());
  const Passages passages = plan_passages(worker, before, wanted, piece_bytes);

  size_t longest = 0;
  for (const auto* side : {&passages.in, &passages.out}) {
    for (const Passage& passage : *side) longest = std::max(longest, passage.bytes);
  }
  Buffer out(passages.out.size() * passages.piece);
  Buffer in(passages.in.size() * passages.piece);
  for (size_t offset = 0; offset < longest; offset += passages.piece) {
    pass_pieces(worker, worker.store().memory(), passages, offset, out, in);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    Parameter& parameter = *worker.store().parameters()[i];
    if (parameter.name() != names[i]) ++parameter.version;
  }
  const std::array<int64_t, 2> mine = {bytes_of(passages.in), bytes_of(passages.out)};
  MovedBytes moved;
  for (const auto& [received, sent] : worker.await(worker.world().all_gather(mine))) {
    moved.all += received;
    moved.busiest = std::max(moved.busiest, received + sent);
  }
  return moved;
}

}  // namespace cadre
