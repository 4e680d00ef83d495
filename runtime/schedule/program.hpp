// SPDX-License-Identifier: Apache-2.0
// A pipeline schedule as a value: for each rank the list of what it does, in order, with every message of the pipeline
// in it. Generators make programs, verify proves them, simulate times them, an executor walks them.
//
// A list is meant so: a receive is posted and does not wait; a forward or backward waits for the rows that were posted
// for it; a send hands its rows over and at worst waits until the receiver has posted.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace cadre {

// A micro-batch at a stage of the model.
struct Chunk {
  int stage = -1;
  int micro_batch = -1;
  bool operator==(const Chunk&) const = default;
};

enum class Pass { forward, backward };

// A pass over a chunk. It also names the message that feeds it: forward passes are fed the activations of the stage
// before, backward passes the gradients of the stage after.
struct Work {
  Pass pass;
  Chunk chunk;
  bool operator==(const Work&) const = default;
};

enum class OpKind {
  forward,
  backward,         // of inputs and weights
  backward_input,   // the gradient of the inputs only; a backward_weight follows some time later
  backward_weight,  // needs nothing but what the forward and the backward_input of its chunk left
  overlapped,       // the forward of one chunk beside the full backward of another
  receive,
  send,
};

struct Op {
  OpKind kind;
  Chunk chunk = {};        // overlapped: of the forward
  Chunk back_chunk = {};   // overlapped: of the backward
  int peer = -1;           // messages: the other rank
  Work feeds = {};         // messages: the work that the rows are for, at the receiver
  bool with_next = false;  // forward or backward: runs side by side with the op that follows, of the same kind
  bool operator==(const Op&) const = default;
};

using OpList = std::vector<Op>;

// Of the first ops those that run side by side; at least one.
size_t count_together(std::span<const Op> ops);

struct Program {
  std::string name;
  std::string note = {};  // why this is not the schedule that was asked for; else empty
  int num_ranks = 0;
  int num_stages = 0;
  int num_micro_batches = 0;
  // routes[k][stage] is the rank of the stage for the k-th equal part of the micro-batches: one route, or two that enter
  // the pipeline at opposite ends.
  std::vector<std::vector<int>> routes = {};
  std::vector<OpList> ops = {};  // of each rank
  // Behind overlapped ops the weight gradients of so many micro-batches may wait for gaps in later ops.
  int num_postponed = 1;
  // Behind the last forward pass of a rank deferred work runs layer by layer, that the sums of gradients may begin early. Not
  // where ops name weight gradients.
  bool ends_by_layer = false;
  // Gradients are summed over ranks once a backward pass, not once a step.
  bool sums_each_pass = false;

  int micro_batches_a_route() const { return num_micro_batches / static_cast<int>(routes.size()); }
  int route_of(int micro_batch) const { return micro_batch / micro_batches_a_route(); }
  int rank_of(Chunk chunk) const;
  bool contains(Chunk chunk) const;
};

bool is_message(const Op& op);

// The forward and backward passes that the op runs to their end: none, one or two.
std::vector<Work> works_of(const Op& op);

// The work whose output this one takes, or that takes the output of this one; none at the ends of the pipeline.
std::optional<Work> work_before(const Program& program, Work work);
std::optional<Work> work_after(const Program& program, Work work);
// False where the work starts the pass or follows a stage of the same rank.
bool needs_message(const Program& program, Work work);

// Numbers the works of a program from 0 to num_works - 1 = 2 x stages x micro-batches - 1, and so the messages.
int index_of(const Program& program, Work work);
int num_works(const Program& program);

// Which of the two stages that a rank holds a chunk belongs to: with two routes the route, else the first half of the
// stages (0) or the second (1); always 0 where ranks hold one stage. And the micro-batch as counted along its route.
int phase_of(const Program& program, Chunk chunk);
int number_of(const Program& program, Chunk chunk);
bool has_two_phases(const Program& program);

// Tells the message that feeds `work` from the others between the same two ranks, in the same direction: passes of the same two
// stages travel in opposite directions, so one of the two stages of the receiver and the micro-batch say which it is. Below 2 x
// micro-batches, whatever the number of ranks and stages.
int tag_of(const Program& program, Work work);

// "Fa3", "bb0" (input gradient), "Wb0", "{Fa7&Bb3}", "send for Fa3 to rank 2". The letter is the phase, where there
// are two. Ops that run side by side are joined by + in lists.
std::string name_of(const Program& program, const Op& op);
std::string name_of(const Program& program, Work work);

// One line a rank, without messages; weight gradients, which run in the order of their input gradients, are just W.
std::string lists_text(const Program& program);

}  // namespace cadre
