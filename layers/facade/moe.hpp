// SPDX-License-Identifier: Apache-2.0
// The public interface of Cadre's dispatcher: token rows go to the experts that a router chose for them, on whatever rank
// those are, and weighted sums of the results come back. Installed as <cadre/moe.hpp>; needs no other header of Cadre.
//
//   using namespace cadre::moe;
//   Dispatcher dispatcher = make_dispatcher(MPI_COMM_WORLD, {.num_experts = 64, .top_k = 8, .width = 2048});
//   Batch batch = dispatch(dispatcher, {x, num_tokens, 2048}, ids, weights);  // rows of this rank's experts, by expert
//   ... results = E_e(batch.rows()) for every expert e of this rank
//   combine(batch, results, {y, num_tokens, 2048});                           // y_t = sum_k w_tk E_k(x_t)
//
// and backward, from dy to dx and dw:
//
//   combine_backward(batch, dy, results, d_results, d_weights);  // d_results_p = w_p dy_t, dw_tk = <dy_t, results_p>
//   ... d_rows = the input gradient of the experts for d_results
//   dispatch_backward(batch, d_rows, dx);                        // dx_t = sum of d_rows_p over the places p of token t
//
// Letters: T tokens of this rank, K = top_k, H = width, P places of this rank. A place is one (token, k) at its expert;
// places are ordered by (expert, source rank, token).
//
// Every call that takes a Dispatcher or a Batch is collective over the communicator, in the same order on all ranks, and
// blocks. Rows are fp32. Matrices are row-major; a stride is counted in floats. Where Options::memory is `device`, rows lie
// in memory of that device; ids and weights always lie on the host.
//
// Errors: every function throws a std::exception whose what() is one line: what is wrong, where, and a hint. Arguments are
// checked before a message is sent. If one rank throws, the others throw when Options::deadline_seconds have passed.
//
// Stable: names and meaning of what is declared here change only with the major version, which is part of the namespace.
#pragma once

#include <mpi.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

// major * 10000 + minor * 100
#define CADRE_MOE_VERSION 10000

namespace cadre {
struct DispatchPlan;
}

namespace cadre::moe {
inline namespace v1 {

// CADRE_MOE_VERSION of the library that is linked.
int version() noexcept;

// `count` rows of `width` floats; row i starts at data + i * stride.
struct Rows {
  Rows() = default;
  Rows(float* rows, int64_t num_rows, int64_t row_width) : Rows(rows, num_rows, row_width, row_width) {}
  Rows(float* rows, int64_t num_rows, int64_t row_width, int64_t row_stride)
      : data(rows), count(num_rows), width(row_width), stride(row_stride) {}
  // Without gaps.
  Rows(std::span<float> values, int64_t row_width)
      : Rows(values.data(), static_cast<int64_t>(values.size()) / row_width, row_width) {}

  float* row(int64_t i) const { return data + i * stride; }

  float* data = nullptr;
  int64_t count = 0;
  int64_t width = 0;
  int64_t stride = 0;
};
struct ConstRows {
  ConstRows() = default;
  ConstRows(const float* rows, int64_t num_rows, int64_t row_width) : ConstRows(rows, num_rows, row_width, row_width) {}
  ConstRows(const float* rows, int64_t num_rows, int64_t row_width, int64_t row_stride)
      : data(rows), count(num_rows), width(row_width), stride(row_stride) {}
  ConstRows(std::span<const float> values, int64_t row_width)
      : ConstRows(values.data(), static_cast<int64_t>(values.size()) / row_width, row_width) {}
  ConstRows(const Rows& rows)
      : ConstRows(rows.data, rows.count, rows.width, rows.stride) {}  // NOLINT: a view of the same

  const float* row(int64_t i) const { return data + i * stride; }

  const float* data = nullptr;
  int64_t count = 0;
  int64_t width = 0;
  int64_t stride = 0;
};

// What rows are rounded to while they travel; fp8 is E4M3 with a scale for 128 channels.
enum class Wire { fp32, bf16, fp8 };
// partial: each rank returns one sum a token, the fewest bytes. slots: one row returns for each (token, k) and is added in
// the order of k, so the bits of y do not depend on where experts are.
enum class Sums { partial, slots };
enum class Memory { host, device };

// Equal on all ranks, except `device` and `threads`.
struct Options {
  int num_experts = 0;        // of all ranks
  int top_k = 1;              // columns of ids
  int64_t width = 0;          // H
  int64_t max_tokens = 4096;  // of one dispatch on any rank; more work too, but are not read in place
  // auto: measure and choose; flat, all_gather, shared, hierarchical: see comm/README.md
  std::string strategy = "auto";
  Wire dispatch_wire = Wire::fp32;
  Wire combine_wire = Wire::fp32;
  Sums sums = Sums::partial;
  // The experts of each rank; an expert on several ranks has replicas, which share its rows. Empty: neighbouring experts
  // together, as even as possible.
  std::vector<std::vector<int>> experts_of = {};
  Memory memory = Memory::host;
  int device = 0;                   // CUDA device of this rank, where memory is `device`
  int threads = 1;                  // that gather and add rows on this rank
  double deadline_seconds = 120.0;  // of one wait for other ranks
};

// Which rows a rank sends to which rank: an immutable value, cheap to copy. A row is one token on its way to one rank; it
// carries the slots, that is the (token, k), that have their expert there. Rows are ordered by (destination rank, token).
class Plan {
 public:
  explicit Plan(std::shared_ptr<const DispatchPlan> plan) : plan_(std::move(plan)) {}

  int num_ranks() const;
  int top_k() const;
  int64_t num_tokens() const;
  int64_t num_rows() const;
  int64_t num_slots() const;                     // with an expert
  int64_t num_dropped() const;                   // without: id -1
  std::span<const int64_t> row_counts() const;   // [ranks] rows for each rank
  std::span<const int64_t> slot_counts() const;  // [ranks]
  std::span<const int32_t> row_token() const;    // [rows] token of each row
  std::span<const int32_t> row_slots() const;    // [rows + 1] row r carries slots()[row_slots[r] .. row_slots[r + 1])
  std::span<const int32_t> slots() const;        // [slots] token * top_k + k
  std::span<const int32_t> slot_expert() const;  // [slots] index of the expert on its rank
  std::string describe() const;                  // for people
  bool operator==(const Plan& other) const;

  const DispatchPlan& value() const { return *plan_; }

 private:
  std::shared_ptr<const DispatchPlan> plan_;
};

// Without communication. ids [T,K], -1 for none; `rank` holds the tokens; experts_of as in Options.
Plan make_plan(std::span<const int32_t> ids, int top_k, int num_experts, int num_ranks, int rank = 0,
               const std::vector<std::vector<int>>& experts_of = {});

class DispatcherState;
class BatchState;

// Holds a duplicate of the communicator and the buffers of its batches. Move-only; a moved-from one may only be destroyed.
class Dispatcher {
 public:
  explicit Dispatcher(std::shared_ptr<DispatcherState> state) : state_(std::move(state)) {}
  Dispatcher(Dispatcher&&) noexcept = default;
  Dispatcher& operator=(Dispatcher&&) noexcept = default;
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;
  // Collective, as the destruction of its last Batch is, because MPI frees communicators together.
  ~Dispatcher() = default;

  int rank() const;
  int num_ranks() const;
  std::span<const int> experts() const;  // of this rank, ascending
  const Options& options() const;
  std::string strategy() const;  // in use, and why

  // From here on destruction is not collective: what MPI shares is left to the end of the process. For garbage collectors.
  void leave_to_process_end() noexcept;

  DispatcherState& state() const { return *state_; }
  const std::shared_ptr<DispatcherState>& share() const { return state_; }

 private:
  std::shared_ptr<DispatcherState> state_;
};

// The tokens of one dispatch at the experts of this rank. Move-only; keeps its dispatcher's state.
class Batch {
 public:
  explicit Batch(std::unique_ptr<BatchState> state);
  Batch(Batch&&) noexcept;
  Batch& operator=(Batch&&) noexcept;
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;
  ~Batch();

  // [P,H] without gaps, in memory of the batch. The caller may write it, also the results.
  Rows rows() const;
  std::span<const int32_t> expert_offsets()
      const;                               // [experts + 1]: expert i of this rank works on places [i] .. [i + 1]
  std::span<const float> weights() const;  // [P]
  const Plan& plan() const;

  BatchState& state() const { return *state_; }

 private:
  std::unique_ptr<BatchState> state_;
};

// `comm` is an intracommunicator of an MPI that is initialised; it is duplicated and may be freed afterwards.
Dispatcher make_dispatcher(MPI_Comm comm, const Options& options);

// x [T,H] and weights [T,K] of this rank; ids [T,K], -1 for none. x may change when the call returns.
Batch dispatch(Dispatcher& dispatcher, const ConstRows& x, std::span<const int32_t> ids,
               std::span<const float> weights);
// The same with a plan that was made before, for this rank and this map of experts.
Batch dispatch(Dispatcher& dispatcher, const ConstRows& x, const Plan& plan, std::span<const float> weights);
// results [P,H] -> y [T,H], which is overwritten: y_t = sum over the places p of token t of weight_p results_p.
void combine(Batch& batch, const ConstRows& results, const Rows& y);

// dy [T,H] -> d_results [P,H], which may be batch.rows(): d_results_p = weight_p dy_t.
void combine_backward(Batch& batch, const ConstRows& dy, const Rows& d_results);
// And with results [P,H], other rows than d_results -> d_weights [T,K], on the host: <dy_t, results_p>, 0 where there is no
// expert. All ranks call the same of these two.
void combine_backward(Batch& batch, const ConstRows& dy, const ConstRows& results, const Rows& d_results,
                      std::span<float> d_weights);
// d_rows [P,H] -> dx [T,H], which is overwritten.
void dispatch_backward(Batch& batch, const ConstRows& d_rows, const Rows& dx);

}  // namespace v1
}  // namespace cadre::moe
