// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/program.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

std::string label_of(const Program& program, Chunk chunk) {
  const int number = number_of(program, chunk);
  if (!has_two_phases(program)) return fmt::format("{}", number);
  return fmt::format("{}{}", phase_of(program, chunk) == 0 ? 'a' : 'b', number);
}

std::optional<Work> neighbour(const Program& program, Work work, int stages_on) {
  const int direction = work.pass == Pass::forward ? 1 : -1;
  work.chunk.stage += direction * stages_on;
  if (work.chunk.stage < 0 || work.chunk.stage >= program.num_stages) return std::nullopt;
  return work;
}

}  // namespace

size_t count_together(std::span<const Op> ops) {
  return static_cast<size_t>(std::ranges::find(ops, false, &Op::with_next) - ops.begin()) + 1;
}

int Program::rank_of(Chunk chunk) const {
  return routes[static_cast<size_t>(route_of(chunk.micro_batch))][static_cast<size_t>(chunk.stage)];
}

bool Program::contains(Chunk chunk) const {
  return chunk.stage >= 0 && chunk.stage < num_stages && chunk.micro_batch >= 0 &&
         chunk.micro_batch < num_micro_batches;
}

bool is_message(const Op& op) { return op.kind == OpKind::send || op.kind == OpKind::receive; }

std::vector<Work> works_of(const Op& op) {
  switch (op.kind) {
    case OpKind::forward: return {{Pass::forward, op.chunk}};
    case OpKind::backward:
    case OpKind::backward_input: return {{Pass::backward, op.chunk}};
    case OpKind::overlapped: return {{Pass::forward, op.chunk}, {Pass::backward, op.back_chunk}};
    case OpKind::backward_weight:
    case OpKind::receive:
    case OpKind::send: break;
  }
  return {};
}

std::optional<Work> work_before(const Program& program, Work work) { return neighbour(program, work, -1); }
std::optional<Work> work_after(const Program& program, Work work) { return neighbour(program, work, 1); }

bool needs_message(const Program& program, Work work) {
  const auto before = work_before(program, work);
  return before && program.rank_of(before->chunk) != program.rank_of(work.chunk);
}

int index_of(const Program& program, Work work) {
  const int pass = work.pass == Pass::forward ? 0 : 1;
  return (pass * program.num_stages + work.chunk.stage) * program.num_micro_batches + work.chunk.micro_batch;
}

int num_works(const Program& program) { return 2 * program.num_stages * program.num_micro_batches; }

bool has_two_phases(const Program& program) {
  return program.routes.size() > 1 || program.num_stages > program.num_ranks;
}

int phase_of(const Program& program, Chunk chunk) {
  if (program.routes.size() > 1) return program.route_of(chunk.micro_batch);
  return has_two_phases(program) && chunk.stage >= program.num_stages / 2 ? 1 : 0;
}

int number_of(const Program& program, Chunk chunk) { return chunk.micro_batch % program.micro_batches_a_route(); }

int tag_of(const Program& program, Work work) {
  return phase_of(program, work.chunk) * program.num_micro_batches + work.chunk.micro_batch;
}

std::string name_of(const Program& program, Work work) {
  return fmt::format("{}{}", work.pass == Pass::forward ? 'F' : 'B', label_of(program, work.chunk));
}

std::string name_of(const Program& program, const Op& op) {
  const auto label = [&](Chunk chunk) { return label_of(program, chunk); };
  switch (op.kind) {
    case OpKind::forward: return fmt::format("F{}", label(op.chunk));
    case OpKind::backward: return fmt::format("B{}", label(op.chunk));
    case OpKind::backward_input: return fmt::format("b{}", label(op.chunk));
    case OpKind::backward_weight: return fmt::format("W{}", label(op.chunk));
    case OpKind::overlapped: return fmt::format("{{F{}&B{}}}", label(op.chunk), label(op.back_chunk));
    case OpKind::receive: return fmt::format("receive for {} from rank {}", name_of(program, op.feeds), op.peer);
    case OpKind::send: return fmt::format("send for {} to rank {}", name_of(program, op.feeds), op.peer);
  }
  return "";
}

std::string lists_text(const Program& program) {
  std::string text;
  for (size_t rank = 0; rank < program.ops.size(); ++rank) {
    text += fmt::format("rank{}", rank);
    bool joined = false;
    for (const Op& op : program.ops[rank]) {
      if (is_message(op)) continue;
      text += std::exchange(joined, op.with_next) ? '+' : ' ';
      text += op.kind == OpKind::backward_weight ? "W" : name_of(program, op);
    }
    text += '\n';
  }
  return text;
}

}  // namespace cadre
