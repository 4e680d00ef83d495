// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/embedding.hpp"

#include <vector>

#include "layers/tensor/tensor.hpp"

namespace cadre {

Embedding::Embedding(const std::string& prefix, int64_t vocabulary, int64_t hidden, double init_std)
    : table_(make_table(prefix + ".weight", vocabulary, hidden, init_std)) {}

Tensor Embedding::forward(Context& ctx, const Tensor& ids, Saved& saved) const {
  const Tensor y = ctx.arena.take("embedding", ctx.dtype, {ids.dim(0), table_.value.dim(1)});
  saved.ids = ids;
  ctx.kernels.embedding(ids, table_.value, y);
  return y;
}

void Embedding::input_grad(Context&, Saved& saved, const Tensor& dy) const { saved.dy = dy; }

void Embedding::weight_grad(Context& ctx, const Saved& saved) {
  if (!table_.grad.defined()) return;
  ctx.kernels.embedding_grad(saved.ids, saved.dy, cleared_grad(ctx.kernels, table_));
}

double sum_of_losses(const Tensor& losses, const Tensor& weights) {
  double sum = 0.0;
  for (int64_t t = 0; t < losses.numel(); ++t) {
    const double loss = element(losses, t);
    sum += weights.defined() ? static_cast<double>(weights.data<float>()[t]) * loss : loss;
  }
  return sum;
}

Head::Head(const std::string& prefix, int64_t hidden, int64_t vocabulary, double init_std)
    : own_(make_table(prefix + ".weight", vocabulary, hidden, init_std)), weight_(*own_) {}

Tensor Head::logits(Context& ctx, const Tensor& x) const {
  const Tensor logits = ctx.arena.take("head", ctx.dtype, {x.dim(0), weight_.value.dim(0)});
  ctx.kernels.without_fp8().linear(x, weight_, logits);
  return logits;
}

Tensor Head::forward(Context& ctx, const Tensor& x, const Tensor& targets, Saved& saved, const Tensor& weights) const {
  saved.x = x;
  saved.logits = logits(ctx, x);
  saved.targets = targets;
  saved.weights = weights;
  const Tensor losses = ctx.arena.take_result("head", ctx.dtype, {x.dim(0)});
  ctx.kernels.cross_entropy(saved.logits, targets, losses);
  return losses;
}

namespace {

// Rows [first, last) whose losses have one weight; those without a target have any.
struct WeightRun {
  int64_t first = 0;
  int64_t last = 0;
  double weight = 1.0;
};

std::vector<WeightRun> weight_runs(const Tensor& targets, const Tensor& weights) {
  std::vector<WeightRun> runs = {{.last = targets.dim(0)}};
  if (!weights.defined()) return runs;
  bool is_known = false;  // of the last run
  for (int64_t t = 0; t < targets.dim(0); ++t) {
    if (targets.data<int32_t>()[t] < 0) continue;
    const auto weight = static_cast<double>(weights.data<float>()[t]);
    if (is_known && weight != runs.back().weight) {
      runs.back().last = t;
      runs.push_back({t, targets.dim(0), weight});
    }
    runs.back().weight = weight;
    is_known = true;
  }
  return runs;
}

}  // namespace

// Kernels scale all rows of a call alike.
Tensor Head::input_grad(Context& ctx, Saved& saved, double scale) const {
  for (const WeightRun& run : weight_runs(saved.targets, saved.weights)) {
    const int64_t count = run.last - run.first;
    const Tensor logits = saved.logits.rows(run.first, count);
    ctx.kernels.cross_entropy_grad(logits, saved.targets.rows(run.first, count), scale * run.weight, logits);
  }
  const Tensor dx = ctx.arena.take("head", ctx.dtype, {saved.logits.dim(0), weight_.value.dim(1)});
  ctx.kernels.without_fp8().linear_input_grad(saved.logits, weight_, dx, Accumulate::no);
  return dx;
}

void Head::weight_grad(Context& ctx, const Saved& saved) {
  write_grad(weight_, [&](Accumulate accumulate) {
    ctx.kernels.without_fp8().linear_weight_grad(saved.x, saved.logits, weight_.grad, accumulate);
  });
}

void Head::each_parameter(const ParameterVisitor& visit) {
  if (own_) visit(*own_);
}

}  // namespace cadre
