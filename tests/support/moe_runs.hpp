// SPDX-License-Identifier: Apache-2.0
// A mixture-of-experts layer in fp32 whose tokens, a fixed sequence, are cut into pieces for the ranks at hand: forward
// and backward with any exchange, and what came out, to be compared bit by bit with what one rank finds.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/base/random.hpp"
#include "comm/progress/engine.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/moe/moe_layer.hpp"
#include "layers/tensor/parameter.hpp"
#include "layers/tensor/tensor.hpp"
#include "tests/support/exchanges.hpp"
#include "tests/support/gpu_twin.hpp"
#include "tests/support/masking_kernels.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::test {

// cpu_rows: the CPU's, with products whose rows are independent while weights train too. Those of BLAS are not on every CPU
// (OpenBLAS for Haswell and Zen multiplies a row by other code when there are other rows), and the router and the shared
// expert multiply the rows of one rank.
enum class BackEnd { reference, cpu, cpu_rows, gpu_twin };
// Who has the tokens. even: as even as possible. ragged: rank r about as many as r^2. hole: the first rank has none.
// one: the last rank has all.
enum class Cut { even, ragged, hole, one };

struct MoeCase {
  const char* name = "";
  int num_experts = 8;
  int top_k = 2;
  Cut cut = Cut::even;
  Activation activation = Activation::silu;
  bool favourites = false;  // the bias sends every token to the last top_k experts, which live on the last ranks
  bool masked = false;      // about half of the slots
  bool tight = false;       // the exchange has less memory than the activations need
  int64_t hidden = 24;
  int64_t num_tokens = 37;  // of all ranks together
  BackEnd back_end = BackEnd::cpu;
  CombineMode combine = CombineMode::slot_order;
  WireFormats wire = {};
  std::function<ExpertMap(int num_ranks)> map = {};  // none: contiguous
};

inline constexpr int64_t kExpertWidth = 12;

class RowIndependentProducts final : public WeightProducts {
 public:
  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    row_gemm({x.dim(0), y.dim(1), x.dim(1)}, {x.data<float>(), x.dim(1)},
             {weight.value.data<float>(), x.dim(1), /*transposed=*/true}, y.data<float>(), y.dim(1));
  }
  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    std::vector<float> product(static_cast<size_t>(dx.numel()));
    row_gemm({dy.dim(0), dx.dim(1), dy.dim(1)}, {dy.data<float>(), dy.dim(1)}, {weight.value.data<float>(), dx.dim(1)},
             product.data(), dx.dim(1));
    for (size_t i = 0; i < product.size(); ++i) {
      float& element = dx.data<float>()[i];
      element = accumulate == Accumulate::yes ? element + product[i] : product[i];
    }
  }
  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    gemm(GemmLibrary::openblas, {dw.dim(0), dw.dim(1), x.dim(0)}, {dy.data<float>(), dw.dim(0), /*transposed=*/true},
         {x.data<float>(), dw.dim(1)}, dw.data<float>(), dw.dim(1), 1.0F, accumulate == Accumulate::yes ? 1.0F : 0.0F);
  }
};

inline std::unique_ptr<Kernels> make_kernels(BackEnd back_end) {
  switch (back_end) {
    case BackEnd::cpu: return make_cpu_kernels(Precision::fp32);
    case BackEnd::cpu_rows: return std::make_unique<CpuKernels>(std::make_unique<RowIndependentProducts>());
    case BackEnd::gpu_twin: return make_gpu_twin(TwinOrder::ascending, TwinMemory::own);
    case BackEnd::reference: break;
  }
  return make_reference_kernels();
}

inline RowsOf rows_of(const MoeCase& test_case) {
  return test_case.back_end == BackEnd::gpu_twin ? RowsOf::device : RowsOf::host;
}

inline MoeOptions moe_options(const MoeCase& test_case) {
  return {.hidden = test_case.hidden,
          .expert_width = kExpertWidth,
          .shared_width = 8,
          .activation = test_case.activation,
          .gated = test_case.activation == Activation::silu,
          .init_std = 0.3,
          .router = {.hidden = test_case.hidden,
                     .num_experts = test_case.num_experts,
                     .top_k = test_case.top_k,
                     .score = ScoreFunction::sigmoid,
                     .weights = {},
                     .groups = {},
                     .selection_bias = true,
                     .init_std = 0.3,
                     .losses = {.balance = 0.3}}};
}

// Tokens first .. first + count of the whole are this rank's.
struct TokenSlice {
  int64_t first;
  int64_t count;
};

inline TokenSlice slice_of(const MoeCase& test_case, int rank, int size) {
  const auto end_of = [&](int64_t num_ranks) -> int64_t {  // tokens of the first ranks
    const int64_t total = test_case.num_tokens;
    if (num_ranks == size) return total;
    switch (test_case.cut) {
      case Cut::even: return total * num_ranks / size;
      case Cut::ragged: return total * num_ranks * num_ranks / (int64_t{size} * size);
      case Cut::hole: return num_ranks == 0 ? 0 : total * (num_ranks - 1) / (size - 1);
      case Cut::one: return 0;
    }
    return 0;
  };
  return {end_of(rank), end_of(rank + 1) - end_of(rank)};
}

using Floats = std::vector<float>;

inline Floats floats_of(const Tensor& tensor, Memory& memory) {
  const OnHost here(tensor, memory);
  return {here->data<float>(), here->data<float>() + here->numel()};
}

inline bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// What one rank has of the result: rows of its tokens, gradients of its experts.
struct MoeResult {
  Floats y, dx;
  std::map<std::string, Floats> expert_grads;
};

class MoeRun {
 public:
  using Wrap = std::function<std::unique_ptr<Exchange>(std::unique_ptr<Exchange>)>;

  MoeRun(const MoeCase& test_case, Communicator& world, const ExchangeVariant& variant, const Wrap& wrap = {})
      : test_case_(test_case),
        variant_(variant),
        lane_(0, world.duplicate("expert"), world.duplicate("data")),
        slice_(slice_of(test_case, world.rank(), world.size())),
        layer_("mlp", moe_options(test_case),
               test_case.map ? test_case.map(world.size()) : ExpertMap::contiguous(test_case.num_experts, world.size()),
               world.rank()),
        kernels_(make_kernels(test_case.back_end)),
        exchange_(make_exchange(variant.strategy, setup(variant.topology))) {
    if (wrap) exchange_ = wrap(std::move(exchange_));
    if (test_case.masked) kernels_ = std::make_unique<MaskingKernels>(std::move(kernels_));
    const bool on_host = &kernels_->memory() == &host_memory();
    if (on_host && !exchange_->memory().empty()) arena_.lend(exchange_->memory());
    store_.add_all(layer_);
    store_.allocate(DType::f32, true, false, kernels_->memory());
    store_.initialise(7);
    for (Parameter* parameter : store_.parameters()) {
      if (parameter->placement != Placement::buffer || !test_case.favourites) continue;
      for (int k = 1; k <= test_case.top_k; ++k) parameter->value.data<float>()[test_case.num_experts - k] = 10.0F;
    }
    x_ = fill("x", 1);
    c_ = fill("c", 2);
    inputs_end_ = arena_.mark();
  }

  // Forward and backward of L = sum(y c) + balance loss.
  MoeResult run() {
    store_.forget_grads();
    for (const Parameter* parameter : store_.parameters()) {
      if (!parameter->grad.defined()) continue;
      kernels_->memory().fill(parameter->grad.raw(), std::byte{0xff}, parameter->grad.bytes());
    }
    LaneContext ctx = {{*kernels_, arena_, DType::f32},
                       lane_,
                       *exchange_,
                       test_case_.combine,
                       test_case_.wire,
                       1.0 / static_cast<double>(test_case_.num_tokens)};
    MoeResult result;
    Task<void> task = forward_and_backward(ctx, result);
    Engine().run(lane_, task);
    store_.complete_grads();
    for (const Parameter* parameter : store_.parameters()) {
      if (parameter->placement == Placement::expert) {
        result.expert_grads[parameter->name()] = floats_of(parameter->grad, kernels_->memory());
      }
    }
    return result;
  }

  const ExchangeVariant& variant() const { return variant_; }
  TokenSlice slice() const { return slice_; }
  const MoeLayer::Saved& saved() const { return saved_; }
  const std::vector<Parameter*>& parameters() const { return store_.parameters(); }
  Floats x() const { return floats_of(x_, kernels_->memory()); }
  Exchange& exchange() { return *exchange_; }

 private:
  ExchangeSetup setup(const Topology& topology) const {
    ExchangeSetup setup = setup_of(lane_.expert_group(), topology,
                                   {.max_tokens = test_case_.num_tokens,
                                    .top_k = test_case_.top_k,
                                    .row_bytes = static_cast<size_t>(test_case_.hidden) * sizeof(float)});
    setup.device_codec = kernels_->device_codec();
    if (!test_case_.tight) setup.memory_bytes += size_t{1} << 19;  // of whatever size the activations are here
    return setup;
  }

  Tensor fill(const char* purpose, uint64_t seed) {
    const Tensor tensor = arena_.take(purpose, DType::f32, {slice_.count, test_case_.hidden});
    OnHost here(tensor, kernels_->memory());
    for (int64_t t = 0; t < slice_.count; ++t) {
      const Random random(seed, purpose, static_cast<uint64_t>(slice_.first + t));
      for (int64_t h = 0; h < test_case_.hidden; ++h) {
        here->data<float>()[t * test_case_.hidden + h] = static_cast<float>(random.normal(static_cast<uint64_t>(h)));
      }
    }
    here.put_back();
    return tensor;
  }

  Task<void> forward_and_backward(LaneContext& ctx, MoeResult& result) {
    arena_.release(inputs_end_);
    saved_ = {};
    Task<Tensor> forward = layer_.forward(ctx, x_, saved_);
    const Tensor y = co_await forward;
    result.y = floats_of(y, kernels_->memory());
    Task<Tensor> backward = layer_.backward(ctx, saved_, c_);
    const Tensor dx = co_await backward;
    result.dx = floats_of(dx, kernels_->memory());
  }

  MoeCase test_case_;
  ExchangeVariant variant_;
  Lane lane_;
  TokenSlice slice_;
  MoeLayer layer_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Exchange> exchange_;
  Arena arena_{Arena::Mode::real, /*poison=*/true, kernels_->memory()};
  ParameterStore store_;
  MoeLayer::Saved saved_;
  Tensor x_, c_;
  Arena::Mark inputs_end_;
};

// Runs `body` on one rank, alone, and returns what it returns.
template <class Body>
auto alone(const MoeCase& test_case, Body&& body) {
  decltype(body(std::declval<MoeRun&>())) result;
  on_one_rank([&](Communicator world) {
    MoeRun run(test_case, world, {"flat", "one rank", Topology::uniform(1, 1)});
    result = body(run);
  });
  return result;
}

inline MoeResult single_rank(const MoeCase& test_case) {
  return alone(test_case, [](MoeRun& run) { return run.run(); });
}

// The rows of `all` that are this rank's.
inline Floats part_of(const Floats& all, const MoeRun& run, int64_t hidden) {
  const auto [first, count] = run.slice();
  return {all.begin() + first * hidden, all.begin() + (first + count) * hidden};
}

}  // namespace cadre::test
