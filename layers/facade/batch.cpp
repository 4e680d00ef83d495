// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <numeric>
#include <utility>

#include "comm/base/check.hpp"
#include "layers/facade/dispatcher.hpp"
#include "layers/moe/rows.hpp"

namespace cadre::moe {
inline namespace v1 {
namespace {

void check_rows(const char* name, const ConstRows& rows, int64_t count, int64_t width) {
  CADRE_CHECK(rows.count == count && rows.width == width,
              fmt::format("{} is [{},{}], must be [{},{}]", name, rows.count, rows.width, count, width));
  CADRE_CHECK(rows.stride >= width || count <= 1,
              fmt::format("{}: the stride {} is below the width {}", name, rows.stride, width),
              "strides are counted in floats");
  CADRE_CHECK(rows.data != nullptr || count == 0, fmt::format("{} is a null pointer", name));
}

Elements elements_of_rows(const ConstRows& rows) {
  return {reinterpret_cast<const std::byte*>(rows.data), static_cast<size_t>(rows.stride) * sizeof(float)};
}

cadre::Rows kernel_rows(const ConstRows& rows) {
  return {reinterpret_cast<const std::byte*>(rows.data), rows.stride * static_cast<int64_t>(sizeof(float)), DType::f32,
          rows.width};
}

bool is_contiguous(const Rows& rows) { return rows.stride == rows.width || rows.count <= 1; }

// What kernels write, which have rows without gaps: the caller's rows, or a copy of them.
class Output {
 public:
  Output(DispatcherState& state, const char* name, const Rows& rows) : rows_(rows), scope_(state.arena()) {
    if (is_contiguous(rows)) {
      tensor_ = {rows.data, DType::f32, {rows.count, rows.width}};
      return;
    }
    CADRE_CHECK(state.options().memory == Memory::host, fmt::format("{} of a device has a stride", name),
                "outputs in memory of a device have rows without gaps");
    tensor_ = state.arena().take("output", DType::f32, {rows.count, rows.width});
  }

  const Tensor& tensor() const { return tensor_; }
  void finish() const {
    if (is_contiguous(rows_)) return;
    for (int64_t i = 0; i < rows_.count; ++i) {
      std::memcpy(rows_.row(i), tensor_.raw() + static_cast<size_t>(i) * tensor_.row_bytes(), tensor_.row_bytes());
    }
  }

 private:
  Rows rows_;
  ArenaScope scope_;
  Tensor tensor_;
};

}  // namespace

BatchState::BatchState(std::shared_ptr<DispatcherState> dispatcher, const ConstRows& x, DispatchPlan plan,
                       std::span<const float> weights)
    : dispatcher_(std::move(dispatcher)), plan_(std::make_shared<const DispatchPlan>(plan)) {
  check_rows("x", x, plan.num_tokens, dispatcher_->options().width);
  CADRE_CHECK(static_cast<int64_t>(weights.size()) == plan.num_tokens * plan.top_k,
              fmt::format("weights has {} values, must have tokens x top_k = {} x {}", weights.size(), plan.num_tokens,
                          plan.top_k));
  dispatch_ = std::make_unique<Dispatch>(dispatcher_->exchange(), std::move(plan), dispatcher_->map(),
                                         std::vector<double>(weights.begin(), weights.end()));
  const size_t row_bytes = static_cast<size_t>(x.width) * sizeof(float);
  const Elements tokens = dispatcher_->staging().tokens(elements_of_rows(x), x.count, row_bytes, tokens_staged_);
  dispatcher_->run("dispatch", to_experts(tokens));
  dispatcher_->kernels().synchronize();
  const std::vector<double> place_weights = dispatch_->place_weights();
  weights_.assign(place_weights.begin(), place_weights.end());
}

// Tokens that were staged and never combined stay so: a peer may still read them.
BatchState::~BatchState() { dispatcher_->pool().give_back(std::move(rows_)); }

Rows BatchState::rows() {
  return {rows_.empty() ? nullptr : rows_.as<float>(), num_places(), dispatcher_->options().width};
}

Task<void> BatchState::to_experts(Elements tokens) {
  Task<ExpertRows> arrival = dispatch_->to_experts(tokens, dispatcher_->dispatch_format());
  const ExpertRows rows = co_await arrival;
  const Elements arrived = rows.elements();
  const int64_t width = dispatcher_->options().width;
  rows_ = dispatcher_->pool().take(static_cast<size_t>(num_places() * width) * sizeof(float));
  dispatcher_->kernels().gather_rows(rows_of(arrived, DType::f32, width), index_tensor(arrived.index), Tensor(),
                                     {rows_.data(), DType::f32, {num_places(), width}});
  Request gathered = dispatcher_->kernels().launched();
  co_await gathered;
}

void BatchState::combine(const ConstRows& results, const Rows& y, Weighted weighted) {
  DispatcherState& state = *dispatcher_;
  const int64_t width = state.options().width;
  check_rows(weighted == Weighted::yes ? "results" : "d_rows", results, num_places(), width);
  check_rows(weighted == Weighted::yes ? "y" : "dx", y, plan_.num_tokens(), width);
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  const Output output(state, weighted == Weighted::yes ? "y" : "dx", y);
  const Elements from = state.staging().results(elements_of_rows(results), num_places(), row_bytes);
  state.run("combine", to_tokens(from, weighted, output.tensor()));
  state.kernels().synchronize();
  output.finish();
  give_tokens_back();
}

Task<void> BatchState::to_tokens(Elements results, Weighted weighted, Tensor into) {
  const ArenaScope scope(dispatcher_->arena());
  KernelRowAdder adder(dispatcher_->context(), into);
  Task<void> combined =
      dispatch_->to_tokens(results, dispatcher_->combine_format(), weighted, dispatcher_->combine_mode(), adder);
  co_await combined;
}

void BatchState::combine_backward(const ConstRows& dy, const Rows& d_results, const WeightGrads* weight_grads) {
  DispatcherState& state = *dispatcher_;
  const int64_t width = state.options().width;
  const size_t row_bytes = static_cast<size_t>(width) * sizeof(float);
  check_rows("dy", dy, plan_.num_tokens(), width);
  check_rows("d_results", d_results, num_places(), width);
  if (weight_grads != nullptr) {
    check_rows("results", weight_grads->results, num_places(), width);
    const int64_t num_weights = plan_.num_tokens() * plan_.top_k();
    CADRE_CHECK(static_cast<int64_t>(weight_grads->into.size()) == num_weights,
                fmt::format("d_weights has {} values, must have {}", weight_grads->into.size(), num_weights));
    CADRE_CHECK(weight_grads->results.data != d_results.data || num_places() == 0,
                "d_results and results are the same rows", "d_weights needs both");
  }
  const Output output(state, "d_results", d_results);
  bool staged = false;
  const Elements tokens = state.staging().tokens(elements_of_rows(dy), dy.count, row_bytes, staged);
  tokens_staged_ |= staged;
  state.run("combine gradient", gradients_to_experts(tokens, output.tensor(), weight_grads));
  state.kernels().synchronize();
  output.finish();
}

Task<void> BatchState::gradients_to_experts(Elements dy, Tensor d_results, const WeightGrads* weight_grads) {
  const ArenaScope scope(dispatcher_->arena());
  const Context ctx = dispatcher_->context();
  Task<ExpertRows> arrival = dispatch_->to_experts(dy, dispatcher_->dispatch_format());
  const ExpertRows rows = co_await arrival;
  const Elements arrived = rows.elements();
  const cadre::Rows dy_rows = rows_of(arrived, DType::f32, d_results.dim(1));
  ctx.kernels.gather_rows(dy_rows, index_tensor(arrived.index), weight_tensor(ctx, dispatch_->place_weights()),
                          d_results);
  if (weight_grads != nullptr) {
    std::vector<int32_t> places(static_cast<size_t>(num_places()));
    std::iota(places.begin(), places.end(), 0);
    const Tensor dots = ctx.arena.take_result("weights", DType::f32, {num_places()});
    ctx.kernels.dot_rows(dy_rows, index_tensor(arrived.index), kernel_rows(weight_grads->results), index_tensor(places),
                         dots);
    Task<void> returned = dispatch_->numbers_to_tokens(elements_of(dots), sizeof(float),
                                                       reinterpret_cast<std::byte*>(weight_grads->into.data()),
                                                       ctx.kernels.launched(), {});
    co_await returned;
  }
  Request gathered = ctx.kernels.launched();
  co_await gathered;
}

void BatchState::give_tokens_back() {
  if (tokens_staged_) dispatcher_->staging().free_tokens();
  tokens_staged_ = false;
}

}  // namespace v1
}  // namespace cadre::moe
