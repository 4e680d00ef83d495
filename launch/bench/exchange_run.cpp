// SPDX-License-Identifier: Apache-2.0
#include "launch/bench/exchange_run.hpp"

#include <mpi.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"
#include "comm/progress/engine.hpp"
#include "layers/moe/rows.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/parallel/devices.hpp"

namespace cadre {
namespace {

constexpr double kMicrosecondsPerMillisecond = 1e3;

Tensor vector_tensor(std::vector<float>& values) {
  return {values.data(), DType::f32, {static_cast<int64_t>(values.size())}};
}

// A row says whose it is in its first two channels; the others look random.
float channel(int rank, int64_t token, int64_t h) {
  if (h == 0) return static_cast<float>(rank);
  if (h == 1) return static_cast<float>(token);
  const auto mixed = static_cast<uint32_t>((token * 7919 + h * 104729 + rank * 15485863) % 65521);
  return static_cast<float>(mixed) / 65521.0F - 0.5F;
}

// How far a result may be from its token, whose channels are below 1/2 beyond the first two.
double tolerance(Wire wire, int top_k) {
  switch (wire) {
    case Wire::same: return 1e-6;  // K additions of x / K
    case Wire::bf16:
      return 2.0 * 0x1p-10;  // half a unit in the last place at 1/2, there and back
    // Half a unit of 3 mantissa bits at the largest value of a tile that is not the first, and the way back.
    case Wire::fp8: return 0x1p-5 + 0x1p-10 * top_k;
  }
  return 0.0;
}

ExchangeSetup setup_of(const Communicator& world, const Topology& topology, const ExchangeBenchOptions& options,
                       const Kernels& kernels) {
  const size_t row_bytes = static_cast<size_t>(options.hidden) * sizeof(float);
  const auto slots = static_cast<size_t>(options.tokens * options.top_k);
  return {.group = world,
          .topology = topology,
          .max_tokens = options.tokens,
          .top_k = static_cast<int>(options.top_k),
          .max_row_bytes = row_bytes,
          .memory_bytes = row_bytes * slots * static_cast<size_t>(2 * world.size() + 3),  // even if all come here
          .device_codec = kernels.device_codec(),
          .transport_follows = world.transport().follow(kernels.queue())};
}

}  // namespace

ExchangeRun::ExchangeRun(const Communicator& world, const Topology& topology, const ExchangeBenchOptions& options,
                         const std::string& strategy)
    : world_(world),
      lane_(0, world.duplicate("expert"), world.duplicate("data")),
      options_(options),
      map_(ExpertMap::contiguous(static_cast<int>(options.experts), world.size())),
      kernels_(make_kernels(world, {.device = options.device}, RowBits::independent)),
      clock_(kernels_->make_clock()),
      exchange_(make_exchange(strategy, setup_of(lane_.expert_group(), topology, options, *kernels_))) {
  if (options.device == "cpu" && !exchange_->memory().empty()) arena_.lend(exchange_->memory());
  const Wire wire = wire_named(options.wire);
  dispatch_format_ = {DType::f32, options.hidden, wire};
  combine_format_ = {DType::f32, options.hidden, wire == Wire::same ? Wire::same : Wire::bf16};
}

void ExchangeRun::prepare(Workload workload, int64_t iteration) {
  arena_.release({});
  const auto top_k = static_cast<int>(options_.top_k);
  ids_ = draw_routing(workload, {options_.tokens, top_k, world_.rank(), iteration}, map_);
  std::vector<double> weights(ids_.size(), 1.0 / static_cast<double>(top_k));
  dispatch_ = std::make_unique<Dispatch>(*exchange_, ids_, top_k, map_, std::move(weights));
  run(dispatch_->announce());

  const int64_t num_tokens = dispatch_->plan().num_tokens;
  x_ = arena_.take("x", DType::f32, {num_tokens, options_.hidden});
  OnHost x(x_, kernels_->memory());
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int64_t h = 0; h < options_.hidden; ++h) {
      x->data<float>()[token * options_.hidden + h] = channel(world_.rank(), token, h);
    }
  }
  x.put_back();
  placed_ = arena_.take("placed", DType::f32, {dispatch_->num_places(), options_.hidden});
  y_ = arena_.take("y", DType::f32, {num_tokens, options_.hidden});
  for (const Tensor& output : {placed_, y_}) forget(output);
}

double ExchangeRun::exchange_us() {
  return timed_us([this] {
    dispatch();
    run(to_tokens());
  });
}

void ExchangeRun::dispatch(const Dispatch::Meanwhile& meanwhile) { run(to_experts(meanwhile)); }

Task<void> ExchangeRun::to_experts(Dispatch::Meanwhile meanwhile) {
  lane_.enter("dispatch");
  Task<ExpertRows> arrival = dispatch_->to_experts(elements_of(x_), dispatch_format_, {}, std::move(meanwhile));
  const ExpertRows rows = co_await arrival;
  kernels_->gather_rows(rows_of(rows.elements(), DType::f32, options_.hidden), index_tensor(rows.elements().index),
                        Tensor(), placed_);
}

Task<void> ExchangeRun::to_tokens() {
  lane_.enter("combine");
  const ArenaScope scope(arena_);
  KernelRowAdder adder({*kernels_, arena_, DType::f32}, y_);
  const CombineMode mode = options_.combine == "slot_order" ? CombineMode::slot_order : CombineMode::partial;
  Task<void> combined = dispatch_->to_tokens(elements_of(placed_), combine_format_, Weighted::yes, mode, adder);
  co_await combined;
}

void ExchangeRun::run(Task<void> task) { Engine().run(lane_, task); }

double ExchangeRun::alltoallv_us() {
  AlltoallvExchange by_hand(world_, *kernels_, ids_, static_cast<int>(options_.top_k), map_, options_.hidden);
  alltoallv_bytes_ = by_hand.crossing_bytes();
  std::vector<float> values(static_cast<size_t>(dispatch_->plan().num_slots()),
                            1.0F / static_cast<float>(options_.top_k));
  const Tensor weights = vector_tensor(values);
  by_hand.run(x_, weights, y_);  // touches its pages
  forget(y_);
  return timed_us([&] { by_hand.run(x_, weights, y_); });
}

double ExchangeRun::memcpy_us() {
  const size_t bytes = static_cast<size_t>(dispatch_->num_rows_received()) * dispatch_format_.row_bytes();
  if (from_.bytes() < bytes) {
    from_ = Buffer(bytes, kernels_->memory());
    into_ = Buffer(bytes, kernels_->memory());
    kernels_->memory().fill(from_.data(), std::byte{1}, bytes);
    kernels_->memory().fill(into_.data(), std::byte{2}, bytes);
  }
  const Tensor from(from_.data(), DType::u8, {static_cast<int64_t>(bytes)});
  const Tensor into(into_.data(), DType::u8, {static_cast<int64_t>(bytes)});
  return timed_us([&] {
    kernels_->copy(from, into);
    kernels_->copy(into, from);
  });
}

// Token identity: every place holds a whole row of one (rank, token), ordered by rank and token inside an expert.
int64_t ExchangeRun::wrong_placed() const {
  int64_t count = 0;
  const OnHost placed(placed_, kernels_->memory());
  const std::vector<int32_t>& offsets = dispatch_->expert_offsets();
  for (size_t expert = 0; expert + 1 < offsets.size(); ++expert) {
    int64_t last = -1;
    for (int32_t place = offsets[expert]; place < offsets[expert + 1]; ++place) {
      const float* row = placed->data<float>() + place * options_.hidden;
      const auto rank = static_cast<int>(row[0]);
      const auto token = static_cast<int64_t>(row[1]);
      bool good = rank >= 0 && rank < world_.size() && rank * options_.tokens + token > last;
      for (int64_t h = 2; good && h < options_.hidden; ++h) good = row[h] == channel(rank, token, h);
      last = rank * options_.tokens + token;
      count += good ? 0 : 1;
    }
  }
  return count;
}

int64_t ExchangeRun::wrong_results() const {
  int64_t count = 0;
  const OnHost y(y_, kernels_->memory());
  // Channels that name the row are large: rounded they say nothing, and with fp8 they set the scale of their tile.
  const Wire wire = dispatch_format_.wire;
  const int64_t first = wire == Wire::same ? 0 : wire == Wire::bf16 ? 2 : kFp8TileChannels;
  const double allowed = tolerance(dispatch_format_.wire, static_cast<int>(options_.top_k));
  for (int64_t token = 0; token < y_.dim(0); ++token) {
    bool good = true;
    const float* row = y->data<float>() + token * options_.hidden;
    for (int64_t h = first; h < options_.hidden; ++h) {
      const double expected = channel(world_.rank(), token, h);
      good &= std::fabs(row[h] - expected) <= allowed * std::max(1.0, std::fabs(expected));
    }
    count += good ? 0 : 1;
  }
  return count;
}

void ExchangeRun::forget(const Tensor& output) const {
  kernels_->memory().fill(output.raw(), std::byte{0xff}, output.bytes());
}

double ExchangeRun::timed_us(const std::function<void()>& work) const {
  kernels_->synchronize();
  Request together = world_.barrier();
  wait(together);
  clock_->start();
  work();
  return clock_->stop_ms() * kMicrosecondsPerMillisecond;
}

namespace {

Tensor rows_in(Buffer& buffer, int64_t count, int64_t hidden) { return {buffer.data(), DType::f32, {count, hidden}}; }

// into[i] = from[index[i]], as one writes it; by a device that has `from`.
void copy_rows(const Kernels& kernels, const Tensor& from, const std::vector<int32_t>& index, const Tensor& into) {
  if (!kernels.memory().is_on_host()) return kernels.gather_rows(from, index_tensor(index), Tensor(), into);
  const size_t row_bytes = into.row_bytes();
  for (size_t i = 0; i < index.size(); ++i) {
    std::memcpy(into.raw() + i * row_bytes, from.raw() + static_cast<size_t>(index[i]) * row_bytes, row_bytes);
  }
}

std::vector<int> starts(const std::vector<int>& counts) {
  std::vector<int> offsets(counts.size(), 0);
  std::partial_sum(counts.begin(), counts.end() - 1, offsets.begin() + 1);
  return offsets;
}

}  // namespace

AlltoallvExchange::AlltoallvExchange(const Communicator& world, const Kernels& kernels, std::span<const int32_t> ids,
                                     int top_k, const ExpertMap& map, int64_t hidden)
    : world_(world), kernels_(kernels), hidden_(hidden) {
  const auto num_ranks = static_cast<size_t>(world.size());
  send_counts_.assign(num_ranks, 0);
  for (const int32_t id : ids) ++send_counts_[static_cast<size_t>(map.owner(id))];
  send_offsets_ = starts(send_counts_);
  receive_counts_ = wait(world.all_to_all(send_counts_));
  receive_offsets_ = starts(receive_counts_);

  std::vector<int> next = send_offsets_;
  std::vector<int32_t> expert(ids.size());
  pack_token_.resize(ids.size());
  slot_row_.resize(ids.size());
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    const int row = next[static_cast<size_t>(map.owner(ids[slot]))]++;
    pack_token_[row] = static_cast<int32_t>(slot / static_cast<size_t>(top_k));
    slot_row_[slot] = row;
    expert[row] = map.local_index(ids[slot]);
  }
  for (size_t slot = 0; slot <= ids.size(); slot += static_cast<size_t>(top_k)) {
    token_offsets_.push_back(static_cast<int32_t>(slot));
  }

  const int num_received = receive_offsets_.back() + receive_counts_.back();
  const auto expert_sent = std::make_shared<std::vector<int32_t>>(std::move(expert));
  const auto received = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(num_received));
  const std::vector<int64_t> send64(send_counts_.begin(), send_counts_.end());
  const std::vector<int64_t> receive64(receive_counts_.begin(), receive_counts_.end());
  const std::vector<int64_t> send_at(send_offsets_.begin(), send_offsets_.end());
  const std::vector<int64_t> receive_at(receive_offsets_.begin(), receive_offsets_.end());
  Request experts = world.transport().all_to_all_rows(
      {reinterpret_cast<const std::byte*>(expert_sent->data()), send64, send_at},
      {reinterpret_cast<std::byte*>(received->data()), receive64, receive_at}, sizeof(int32_t));
  experts.keep(expert_sent);
  experts.keep(received);
  wait(experts);
  const std::vector<int32_t>& expert_received = *received;
  expert_order_.resize(expert_received.size());
  std::iota(expert_order_.begin(), expert_order_.end(), 0);
  std::stable_sort(expert_order_.begin(), expert_order_.end(),
                   [&](int32_t a, int32_t b) { return expert_received[a] < expert_received[b]; });
  arrival_order_.resize(expert_order_.size());
  for (size_t place = 0; place < expert_order_.size(); ++place) {
    arrival_order_[expert_order_[place]] = static_cast<int32_t>(place);
  }
  const size_t row_bytes = static_cast<size_t>(hidden) * sizeof(float);
  sent_ = Buffer(ids.size() * row_bytes);
  received_ = Buffer(expert_received.size() * row_bytes);
  placed_ = Buffer(expert_received.size() * row_bytes);
}

void AlltoallvExchange::run(const Tensor& x, const Tensor& weight, const Tensor& y) {
  const Tensor sent = rows_in(sent_, static_cast<int64_t>(pack_token_.size()), hidden_);
  const Tensor received = rows_in(received_, static_cast<int64_t>(expert_order_.size()), hidden_);
  const Tensor placed = rows_in(placed_, received.dim(0), hidden_);
  copy_rows(kernels_, x, pack_token_, sent);
  exchange(sent, send_counts_, send_offsets_, received, receive_counts_, receive_offsets_);
  copy_rows(kernels_, received, expert_order_, placed);

  copy_rows(kernels_, placed, arrival_order_, received);
  exchange(received, receive_counts_, receive_offsets_, sent, send_counts_, send_offsets_);
  kernels_.sum_rows(sent, index_tensor(token_offsets_), index_tensor(slot_row_), weight, y);
}

int64_t AlltoallvExchange::crossing_bytes() const {
  const auto me = static_cast<size_t>(world_.rank());
  const int64_t rows =
      static_cast<int64_t>(pack_token_.size() + expert_order_.size()) - send_counts_[me] - receive_counts_[me];
  return rows * hidden_ * static_cast<int64_t>(sizeof(float));
}

void AlltoallvExchange::exchange(const Tensor& from, const std::vector<int>& send_counts,
                                 const std::vector<int>& send_offsets, const Tensor& into,
                                 const std::vector<int>& receive_counts, const std::vector<int>& receive_offsets) {
  if (world_.transport().name() != "mpi") {  // ranks that are threads have no MPI
    const std::vector<int64_t> sends(send_counts.begin(), send_counts.end());
    const std::vector<int64_t> receives(receive_counts.begin(), receive_counts.end());
    const std::vector<int64_t> send_at(send_offsets.begin(), send_offsets.end());
    const std::vector<int64_t> receive_at(receive_offsets.begin(), receive_offsets.end());
    Request moved = world_.transport().all_to_all_rows({from.raw(), sends, send_at}, {into.raw(), receives, receive_at},
                                                       into.row_bytes());
    return wait(moved);
  }
  MPI_Datatype row = MPI_DATATYPE_NULL;
  const auto check = [](int code) { CADRE_CHECK(code == MPI_SUCCESS, "MPI_Alltoallv of the yardstick failed"); };
  check(MPI_Type_contiguous(checked_int(hidden_, "floats of a row"), MPI_FLOAT, &row));
  check(MPI_Type_commit(&row));
  check(MPI_Alltoallv(from.raw(), send_counts.data(), send_offsets.data(), row, into.raw(), receive_counts.data(),
                      receive_offsets.data(), row, MPI_COMM_WORLD));
  check(MPI_Type_free(&row));
}

}  // namespace cadre
