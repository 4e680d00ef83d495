// SPDX-License-Identifier: Apache-2.0
// A mixture-of-experts layer in fp64 whose tokens, a fixed sequence, are cut into pieces for the ranks at hand, and what
// one rank finds: outputs and gradients to compare with.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "layers/moe/moe_layer.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::test {

// Every rank adds up in another order than one rank does: rounding of a few sums of order one in fp64.
inline constexpr double kSameUpToRounding = 1e-12;

using Values = std::vector<double>;

struct LayerCase {
  MoeOptions options;
  int64_t num_tokens = 24;  // of all ranks together
  int64_t sequence_length = 0;
  CombineMode combine = CombineMode::partial;
  bool first_rank_empty = false;
  std::vector<int32_t> tasks = {};            // of all tokens; empty: none has one
  std::vector<int32_t> experts_a_token = {};  // the same
  bool training = true;
  bool decoding = false;
  std::function<void(Parameter&)> prepare = {};  // after the initial values
};

// Tokens first .. first + count of the whole are one rank's.
struct LayerSlice {
  int64_t first;
  int64_t count;
};

inline LayerSlice slice_of(const LayerCase& layer_case, int rank, int size) {
  const bool skip_first = layer_case.first_rank_empty && size > 1;
  const int num_holders = skip_first ? size - 1 : size;
  const int holder = skip_first ? rank - 1 : rank;
  if (holder < 0) return {0, 0};
  const int64_t first = layer_case.num_tokens * holder / num_holders;
  return {first, layer_case.num_tokens * (holder + 1) / num_holders - first};
}

// One rank's layer with its inputs; run() does forward and backward of L = sum(y c) + balance losses.
class LayerRun {
 public:
  LayerRun(const LayerCase& layer_case, Communicator& world, const ExchangeVariant& variant)
      : case_(layer_case),
        lane_(0, world.duplicate("expert"), world.duplicate("data")),
        slice_(slice_of(layer_case, world.rank(), world.size())),
        layer_("mlp", layer_case.options, ExpertMap::contiguous(layer_case.options.router.num_experts, world.size()),
               world.rank()),
        exchange_(make_exchange(variant.strategy, setup_of(lane_.expert_group(), variant.topology, needs()))),
        kernels_(make_reference_kernels()),
        ctx_{{*kernels_, arena_, DType::f64},
             lane_,
             *exchange_,
             layer_case.combine,
             {},
             1.0 / static_cast<double>(layer_case.num_tokens),
             layer_case.training} {
    if (!exchange_->memory().empty()) arena_.lend(exchange_->memory());
    store_.add_all(layer_);
    store_.allocate(DType::f64, true, false);
    store_.initialise(7);
    for (Parameter* parameter : store_.parameters()) {
      if (layer_case.prepare) layer_case.prepare(*parameter);
    }
    ctx_.decoding = layer_case.decoding;
    ctx_.tokens = {.seed = 5,
                   .step = 3,
                   .first = slice_.first,
                   .sequence_length = layer_case.sequence_length,
                   .task = part_of(case_.tasks),
                   .num_experts = part_of(case_.experts_a_token)};
    x_ = fill("x", 1);
    c_ = fill("c", 2);
  }

  void run() {
    store_.forget_grads();
    Task<void> task = forward_and_backward();
    Engine().run(lane_, task);
    store_.complete_grads();
  }

  // Forward only; the loss of this rank.
  double loss() {
    Task<void> task = forward_only();
    Engine().run(lane_, task);
    double sum = saved_.balance_loss;
    for (int64_t i = 0; i < y_.numel(); ++i) sum += y_.data<double>()[i] * c_.data<double>()[i];
    return sum;
  }

  LayerSlice slice() const { return slice_; }
  MoeLayer& layer() { return layer_; }
  const MoeLayer::Saved& saved() const { return saved_; }
  const Tensor& x() const { return x_; }
  const Tensor& y() const { return y_; }
  const Tensor& dx() const { return dx_; }
  const std::vector<int64_t>& counts() const { return saved_.router.counts; }
  const std::vector<Parameter*>& parameters() const { return store_.parameters(); }
  Parameter& parameter(const std::string& name) {
    for (Parameter* parameter : store_.parameters()) {
      if (parameter->name() == name) return *parameter;
    }
    throw std::runtime_error("no parameter " + name);
  }
  std::vector<int32_t> ids() const {
    const Tensor& ids = saved_.router.ids;
    return {ids.data<int32_t>(), ids.data<int32_t>() + ids.numel()};
  }

 private:
  ExchangeNeeds needs() const {
    return {.max_tokens = 64 * case_.num_tokens,
            .top_k = std::max(case_.options.router.top_k, 3),
            .row_bytes = static_cast<size_t>(case_.options.hidden) * sizeof(double)};
  }

  Tensor part_of(std::vector<int32_t>& all) const {
    return all.empty() ? Tensor() : Tensor(all.data() + slice_.first, DType::i32, {slice_.count});
  }

  Tensor fill(const char* purpose, uint64_t seed) {
    const int64_t hidden = case_.options.hidden;
    const Tensor tensor = inputs_.take(purpose, DType::f64, {slice_.count, hidden});
    for (int64_t t = 0; t < slice_.count; ++t) {
      const Random random(seed, purpose, static_cast<uint64_t>(slice_.first + t));
      for (int64_t h = 0; h < hidden; ++h) {
        tensor.data<double>()[t * hidden + h] = random.normal(static_cast<uint64_t>(h));
      }
    }
    return tensor;
  }

  Task<void> forward_only() {
    arena_.release({});
    saved_ = {};
    Task<Tensor> forward = layer_.forward(ctx_, x_, saved_);
    y_ = co_await forward;
  }

  Task<void> forward_and_backward() {
    Task<void> forward = forward_only();
    co_await forward;
    Task<Tensor> backward = layer_.backward(ctx_, saved_, c_);
    dx_ = co_await backward;
  }

  LayerCase case_;
  Lane lane_;
  LayerSlice slice_;
  MoeLayer layer_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Kernels> kernels_;
  Arena inputs_;
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  LaneContext ctx_;
  ParameterStore store_;
  MoeLayer::Saved saved_;
  Tensor x_, c_, y_, dx_;
};

// Runs `body` with the whole on one rank.
inline void alone(const LayerCase& layer_case, const std::function<void(LayerRun&)>& body) {
  on_one_rank([&](Communicator world) {
    LayerRun run(layer_case, world, {"flat", "one rank", Topology::uniform(1, 1)});
    body(run);
  });
}

struct LayerResult {
  Values y, dx;
  std::map<std::string, Values> grads;
  double loss = 0.0;
  std::vector<int32_t> ids;
};

inline LayerResult single_rank(const LayerCase& layer_case) {
  LayerResult result;
  alone(layer_case, [&](LayerRun& run) {
    result.loss = run.loss();
    run.run();
    result.y = values_of(run.y());
    result.dx = values_of(run.dx());
    result.ids = run.ids();
    for (const Parameter* parameter : run.parameters()) {
      if (parameter->grad.defined()) result.grads[parameter->name()] = values_of(parameter->grad);
    }
  });
  return result;
}

inline void expect_near(const Values& expected, const double* actual, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(expected[i], actual[i], kSameUpToRounding) << what << " element " << i;
  }
}

// Expects that the run, which has been run, found this rank's part of `reference`; gradients of what all ranks hold are
// added up first. Collective over `world`.
inline void expect_same(const LayerResult& reference, LayerRun& run, Communicator& world, int64_t hidden) {
  const LayerSlice slice = run.slice();
  const auto part = [&](const Values& all) {
    return Values(all.begin() + slice.first * hidden, all.begin() + (slice.first + slice.count) * hidden);
  };
  expect_near(part(reference.y), run.y().data<double>(), "y");
  expect_near(part(reference.dx), run.dx().data<double>(), "dx");
  for (Parameter* parameter : run.parameters()) {
    if (!parameter->grad.defined()) continue;
    Values grad = values_of(parameter->grad);
    if (parameter->placement == Placement::shared) grad = wait(world.all_reduce(std::move(grad), ReduceOp::sum));
    expect_near(reference.grads.at(parameter->name()), grad.data(), parameter->name());
  }
}

}  // namespace cadre::test
