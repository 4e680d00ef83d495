// SPDX-License-Identifier: Apache-2.0
// The distributed layer against the same layer on one rank, and that one against central differences, all in fp64.
#include "layers/moe/moe_layer.hpp"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "comm/transport/local.hpp"
#include "layers/tensor/parameter_store.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/gradient_check.hpp"
#include "tests/support/ranks.hpp"

namespace cadre {
namespace {

constexpr int64_t kHidden = 10;  // rows large enough to be read in place
constexpr int64_t kWidth = 5;
constexpr int64_t kTokens = 22;  // of all ranks together
const test::ExchangeNeeds kNeeds = {.max_tokens = 64 * kTokens, .top_k = 3, .row_bytes = kHidden * sizeof(double)};

// Every rank adds up in another order than one rank does: rounding of a few sums of order one in fp64.
constexpr double kSameUpToRounding = 1e-12;

struct Case {
  const char* name;
  int num_experts = 8;
  int top_k = 2;
  ScoreFunction score = ScoreFunction::softmax;
  bool renormalise = true;
  Activation activation = Activation::silu;
  bool shared = true;
  bool bias = false;
  CombineMode combine = CombineMode::partial;
  bool first_rank_empty = false;
  GroupLimit groups = {};
  bool all_to_one = false;  // the bias sends every token to expert 1 (and 2)
};

const Case kCases[] = {
    {.name = "softmax top-2"},
    {.name = "sigmoid with bias, gelu", .score = ScoreFunction::sigmoid, .activation = Activation::gelu, .bias = true},
    {.name = "ten experts, relu, no shared expert",
     .num_experts = 10,
     .top_k = 3,
     .activation = Activation::relu,
     .shared = false},
    {.name = "not renormalised, slot order", .renormalise = false, .combine = CombineMode::slot_order},
    {.name = "rank 0 without tokens", .combine = CombineMode::slot_order, .first_rank_empty = true},
    {.name = "all tokens to one expert",
     .top_k = 1,
     .score = ScoreFunction::sigmoid,
     .renormalise = false,
     .bias = true,
     .all_to_one = true},
    {.name = "all tokens to two experts", .score = ScoreFunction::sigmoid, .bias = true, .all_to_one = true},
    {.name = "two of four groups",
     .top_k = 3,
     .score = ScoreFunction::sigmoid,
     .bias = true,
     .groups = {.groups = 4, .kept = 2, .score = GroupScore::sum_of_best_two}},
    {.name = "fewer experts than ranks, all chosen", .num_experts = 2, .top_k = 2, .first_rank_empty = true},
};

MoeOptions options_of(const Case& test_case) {
  return {.hidden = kHidden,
          .expert_width = kWidth,
          .shared_width = test_case.shared ? 7 : 0,
          .activation = test_case.activation,
          .init_std = 0.5,
          .balance_alpha = 0.3,
          .router = {.hidden = kHidden,
                     .num_experts = test_case.num_experts,
                     .top_k = test_case.top_k,
                     .score = test_case.score,
                     .weights = {.renormalise = test_case.renormalise, .scale = 1.5},
                     .groups = test_case.groups,
                     .selection_bias = test_case.bias,
                     .init_std = 0.5}};
}

// Tokens first .. first + count of the whole are this rank's.
struct Slice {
  int64_t first;
  int64_t count;
};

Slice slice_of(const Case& test_case, int rank, int size) {
  const bool skip_first = test_case.first_rank_empty && size > 1;
  const int num_holders = skip_first ? size - 1 : size;
  const int holder = skip_first ? rank - 1 : rank;
  if (holder < 0) return {0, 0};
  const int64_t first = kTokens * holder / num_holders;
  return {first, kTokens * (holder + 1) / num_holders - first};
}

const test::ExchangeVariant kAlone = {"flat", "one rank", Topology::uniform(1, 1)};

// One rank's layer with its inputs; run() does forward and backward of L = sum(y c) + balance loss.
class LayerRun {
 public:
  LayerRun(const Case& test_case, Communicator& world, const test::ExchangeVariant& variant)
      : test_case_(test_case),
        lane_(0, world.duplicate("expert"), world.duplicate("data")),
        slice_(slice_of(test_case, world.rank(), world.size())),
        layer_("mlp", options_of(test_case), ExpertMap::contiguous(test_case.num_experts, world.size()), world.rank()),
        exchange_(make_exchange(variant.strategy, test::setup_of(lane_.expert_group(), variant.topology, kNeeds))),
        kernels_(make_reference_kernels()),
        ctx_{{*kernels_, arena_, DType::f64}, lane_, *exchange_, test_case.combine, {}, 1.0 / kTokens} {
    if (!exchange_->memory().empty()) arena_.lend(exchange_->memory());
    store_.add_all(layer_);
    store_.allocate(DType::f64, true, false);
    store_.initialise(7);
    if (test_case.all_to_one) {
      for (Parameter* parameter : store_.parameters()) {
        if (parameter->placement == Placement::buffer) parameter->value.data<double>()[1] = 100.0;
        if (parameter->placement == Placement::buffer) parameter->value.data<double>()[2] = 50.0;
      }
    }
    x_ = fill("x", 1);
    c_ = fill("c", 2);
  }

  void run() {
    store_.forget_grads();
    Task<void> task = forward_and_backward();
    Engine().run(lane_, task);
    store_.complete_grads();
  }

  double loss() {
    Task<void> task = forward_only();
    Engine().run(lane_, task);
    double sum = saved_.balance_loss;
    for (int64_t i = 0; i < y_.numel(); ++i) sum += y_.data<double>()[i] * c_.data<double>()[i];
    return sum;
  }

  Slice slice() const { return slice_; }
  const Tensor& x() const { return x_; }
  const Tensor& y() const { return y_; }
  const Tensor& dx() const { return dx_; }
  const std::vector<int64_t>& counts() const { return saved_.router.counts; }
  const std::vector<Parameter*>& parameters() const { return store_.parameters(); }

 private:
  Tensor fill(const char* purpose, uint64_t seed) {
    const Tensor tensor = inputs_.take(purpose, DType::f64, {slice_.count, kHidden});
    for (int64_t t = 0; t < slice_.count; ++t) {
      const Random random(seed, purpose, static_cast<uint64_t>(slice_.first + t));
      for (int64_t h = 0; h < kHidden; ++h) tensor.data<double>()[t * kHidden + h] = random.normal(h);
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

  Case test_case_;
  Lane lane_;
  Slice slice_;
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

using Values = std::vector<double>;

Values values_of(const Tensor& tensor) { return {tensor.data<double>(), tensor.data<double>() + tensor.numel()}; }

struct Reference {
  Values y, dx;
  std::map<std::string, Values> grads;
};

Reference single_rank(const Case& test_case) {
  Reference reference;
  run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
    Communicator alone(std::move(transport), "alone");
    LayerRun run(test_case, alone, kAlone);
    run.run();
    reference.y = values_of(run.y());
    reference.dx = values_of(run.dx());
    for (const Parameter* parameter : run.parameters()) {
      if (parameter->grad.defined()) reference.grads[parameter->name()] = values_of(parameter->grad);
    }
  });
  return reference;
}

void expect_near(const Values& expected, const double* actual, const std::string& what) {
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(expected[i], actual[i], kSameUpToRounding) << what << " element " << i;
  }
}

// Forward and backward with every exchange strategy on every number of ranks.
void each_strategy(const Case& test_case, const std::function<void(LayerRun&, Communicator&)>& check_run) {
  test::on_ranks([&](Communicator& world) {
    for (const test::ExchangeVariant& variant : test::exchange_variants(world)) {
      SCOPED_TRACE(variant.describe());
      LayerRun run(test_case, world, variant);
      run.run();
      check_run(run, world);
    }
  });
}

TEST(MoeLayer, equals_the_single_rank_layer_on_any_number_of_ranks) {
  for (const Case& test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    const Reference reference = single_rank(test_case);
    each_strategy(test_case, [&](LayerRun& run, Communicator& world) {
      const auto [first, count] = run.slice();
      const auto part = [&, first = first, count = count](const Values& all) {
        return Values(all.begin() + first * kHidden, all.begin() + (first + count) * kHidden);
      };
      expect_near(part(reference.y), run.y().data<double>(), "y");
      expect_near(part(reference.dx), run.dx().data<double>(), "dx");
      for (Parameter* parameter : run.parameters()) {
        if (!parameter->grad.defined()) continue;
        Values grad = values_of(parameter->grad);
        if (parameter->placement == Placement::shared) {
          Request summed = world.all_reduce(std::span(grad), ReduceOp::sum);
          wait(summed);
        }
        expect_near(reference.grads.at(parameter->name()), grad.data(), parameter->name());
      }
    });
  }
}

TEST(MoeLayer, gradients_equal_central_differences) {
  for (const Case& test_case : kCases) {
    SCOPED_TRACE(test_case.name);
    run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
      Communicator alone(std::move(transport), "alone");
      LayerRun run(test_case, alone, kAlone);
      run.run();
      const auto loss = [&run] { return run.loss(); };
      const Values dx = values_of(run.dx());
      test::expect_gradient("x", loss, run.x(), Tensor(const_cast<double*>(dx.data()), DType::f64, {kTokens, kHidden}));
      for (const Parameter* parameter : run.parameters()) {
        if (!parameter->grad.defined()) continue;
        const Values grad = values_of(parameter->grad);
        if (std::all_of(grad.begin(), grad.end(), [](double g) { return g == 0.0; })) {
          // An expert that no token chose: its gradient is exactly zero.
          EXPECT_EQ(parameter->placement, Placement::expert) << parameter->name();
          continue;
        }
        test::expect_gradient(parameter->name(), loss, parameter->value, parameter->grad);
      }
    });
  }
}

TEST(MoeLayer, cases_are_what_they_say) {
  for (const Case& test_case : kCases) {
    run_local_ranks(1, [&](std::unique_ptr<Transport> transport) {
      Communicator alone(std::move(transport), "alone");
      LayerRun run(test_case, alone, kAlone);
      run.run();
      const auto num_used = std::count_if(run.counts().begin(), run.counts().end(), [](int64_t c) { return c > 0; });
      EXPECT_EQ(std::accumulate(run.counts().begin(), run.counts().end(), int64_t{0}), kTokens * test_case.top_k);
      EXPECT_EQ(num_used == test_case.top_k, test_case.all_to_one || test_case.num_experts == test_case.top_k);
    });
  }
}

TEST(MoeLayer, slot_order_gives_the_same_bits_for_any_spread_of_experts) {
  const Reference reference = single_rank(kCases[3]);
  each_strategy(kCases[3], [&](LayerRun& run, Communicator& /*world*/) {
    const auto [first, count] = run.slice();
    for (int64_t i = 0; i < count * kHidden; ++i) {
      ASSERT_EQ(reference.y[first * kHidden + i], run.y().data<double>()[i]);
      ASSERT_EQ(reference.dx[first * kHidden + i], run.dx().data<double>()[i]);
    }
  });
}

}  // namespace
}  // namespace cadre
