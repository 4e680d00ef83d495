// SPDX-License-Identifier: Apache-2.0
#include "layers/router/score.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "comm/base/random.hpp"
#include "layers/router/not_finite.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

uint64_t key_of(const TokenFacts& tokens, int64_t t) { return static_cast<uint64_t>(tokens.number_of(t)); }

Tensor like(Context& ctx, const Tensor& other) {
  return ctx.arena.take("router", ctx.dtype, {other.dim(0), other.dim(1)});
}
// For what the host computes.
Tensor host_like(Context& ctx, const Tensor& other) {
  return ctx.arena.take_result("router", ctx.dtype, {other.dim(0), other.dim(1)});
}
Tensor on_host_side(Context& ctx, const Tensor& tensor) { return host_side(ctx, "router", tensor); }

void check_finite(const std::vector<int64_t>& not_finite, int64_t num_tokens, const std::string& prefix,
                  const TokenFacts& tokens) {
  if (not_finite.empty()) return;
  throw Error(
      ErrorKind::numerics,
      fmt::format("router logits of {}: {} of {} tokens hold a NaN or an infinity, the first is token {} of step {}",
                  prefix, not_finite.size(), num_tokens, tokens.number_of(not_finite.front()), tokens.step),
      "the activations or the router weights are no longer finite; lower the learning rate");
}

void draw_jitter(double epsilon, const std::string& prefix, const TokenFacts& tokens, const Tensor& factors) {
  with_element_type(factors, [&]<class T>(std::type_identity<T>) {
    const auto width = static_cast<uint64_t>(factors.dim(1));
    for (int64_t t = 0; t < factors.dim(0); ++t) {
      const Random random(tokens.seed, prefix + " jitter", key_of(tokens, t));
      T* row = factors.data<T>() + t * factors.dim(1);
      const uint64_t first = static_cast<uint64_t>(tokens.step) * width;
      for (uint64_t h = 0; h < width; ++h) {
        row[h] = static_cast<T>(1.0 + epsilon * (2.0 * random.uniform(first + h) - 1.0));
      }
    }
  });
}

void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  with_element_type(out, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < out.numel(); ++i) out.data<T>()[i] = a.data<T>()[i] * b.data<T>()[i];
  });
}

void draw_noise(const std::string& prefix, const TokenFacts& tokens, const Scorer::Saved& saved) {
  with_element_type(saved.clean, [&]<class T>(std::type_identity<T>) {
    const auto width = static_cast<uint64_t>(saved.clean.dim(1));
    for (int64_t t = 0; t < saved.clean.dim(0); ++t) {
      const Random random(tokens.seed, prefix + " noise", key_of(tokens, t));
      const uint64_t first = static_cast<uint64_t>(tokens.step) * width;
      for (uint64_t e = 0; e < width; ++e) {
        const uint64_t i = static_cast<uint64_t>(t) * width + e;
        const double normal = random.normal(first + e);
        saved.normal.data<T>()[i] = static_cast<T>(normal);
        saved.logits.data<T>()[i] =
            static_cast<T>(saved.clean.data<T>()[i] + normal * softplus(saved.noise_input.data<T>()[i]));
      }
    }
  });
}

// From what came for the noisy logits, the clean ones and the deviation to the two products: logits = clean + n s(v).
void through_noise(const Scorer::Saved& saved, const Scorer::Grads& grads, const Tensor& dlogits, const Tensor& dv) {
  with_element_type(dlogits, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < dlogits.numel(); ++i) {
      double d_std = double{dlogits.data<T>()[i]} * saved.normal.data<T>()[i];
      if (grads.noise_std.defined()) d_std += grads.noise_std.data<T>()[i];
      const double v = saved.noise_input.data<T>()[i];
      dv.data<T>()[i] = static_cast<T>(d_std / (1.0 + std::exp(-v)));
      if (grads.clean.defined()) dlogits.data<T>()[i] += grads.clean.data<T>()[i];
    }
  });
}

// Returns the number of rows whose largest logit is left out.
int64_t leave_out(std::span<const uint8_t> alive, const Tensor& logits) {
  int64_t num_lost = 0;
  with_element_type(logits, [&]<class T>(std::type_identity<T>) {
    const int64_t width = logits.dim(1);
    for (int64_t t = 0; t < logits.dim(0); ++t) {
      T* row = logits.data<T>() + t * width;
      if (alive[static_cast<size_t>(std::max_element(row, row + width) - row)] == 0) ++num_lost;
      for (int64_t e = 0; e < width; ++e) {
        if (alive[static_cast<size_t>(e)] == 0) row[e] = -std::numeric_limits<T>::infinity();
      }
    }
  });
  return num_lost;
}

}  // namespace

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

Scorer::Scorer(const std::string& prefix, const ScoreOptions& options) : prefix_(prefix), options_(options) {
  int64_t width = options.hidden;
  for (size_t i = 0; i < options.hidden_sizes.size(); ++i) {
    layers_.emplace_back(fmt::format("{}.hidden.{}", prefix, i), width, options.hidden_sizes[i], options.init_std);
    width = options.hidden_sizes[i];
  }
  layers_.emplace_back(prefix, width, options.num_experts, options.init_std);
  if (options.coarse_groups > 0) {
    coarse_.emplace_back(prefix + ".coarse", options.hidden, options.coarse_groups, options.init_std);
  }
  if (options.noise) noise_.emplace_back(prefix + ".noise", options.hidden, options.num_experts, 0.0);
}

void Scorer::forward(LaneContext& ctx, const Tensor& input, bool for_host, Saved& saved) const {
  Tensor x = input;
  if (ctx.training && options_.jitter > 0.0) {
    const Tensor seen = on_host_side(ctx, input);
    saved.factors = host_like(ctx, x);
    x = host_like(ctx, x);
    if (!ctx.arena.is_dry_run()) {
      ctx.kernels.synchronize();
      draw_jitter(options_.jitter, prefix_, ctx.tokens, saved.factors);
      multiply(seen, saved.factors, x);
    }
  }
  saved.logits = gate(ctx, x, saved);
  const bool noisy = ctx.training && options_.noise;
  if (for_host || noisy) saved.logits = on_host_side(ctx, saved.logits);
  if (noisy) add_noise(ctx, x, saved);
  saved.scores = for_host ? host_like(ctx, saved.logits) : like(ctx, saved.logits);
}

int64_t Scorer::check(const LaneContext& ctx, std::span<const uint8_t> alive, Saved& saved) const {
  if (ctx.arena.is_dry_run()) return 0;
  OnHost logits(saved.logits, ctx.kernels.memory());
  saved.not_finite = rows_not_finite(*logits);
  if (!ctx.training) check_finite(saved.not_finite, logits->dim(0), prefix_, ctx.tokens);
  zero_rows(saved.not_finite, *logits);
  const int64_t num_lost = alive.empty() ? 0 : leave_out(alive, *logits);
  if (!alive.empty() || !saved.not_finite.empty()) logits.put_back();
  return num_lost;
}

void Scorer::score(Context& ctx, std::span<const uint8_t> alive, const Saved& saved) const {
  if (!alive.empty() && std::ranges::count(alive, 0) == options_.num_experts) return saved.scores.fill_zero();
  if (options_.function == ScoreFunction::softmax) {
    ctx.kernels.softmax(saved.logits, saved.scores);
  } else {
    ctx.kernels.sigmoid(saved.logits, saved.scores);
  }
}

Tensor Scorer::gate(Context& ctx, Tensor x, Saved& saved) const {
  Context products = ctx.fp32();
  const Tensor input = x;
  saved.layers.resize(layers_.size());
  saved.before_gelu.resize(layers_.size() - 1);
  for (size_t i = 0; i < layers_.size(); ++i) {
    if (i > 0) {
      saved.before_gelu[i - 1] = x;
      x = like(ctx, x);
      ctx.kernels.activation(Activation::gelu, saved.before_gelu[i - 1], x);
    }
    x = layers_[i].forward(products, x, saved.layers[i]);
  }
  if (coarse_.empty()) return x;
  const Tensor coarse = on_host_side(ctx, coarse_.front().forward(products, input, saved.coarse));
  x = on_host_side(ctx, x);
  saved.within_group = host_like(ctx, x);
  if (ctx.arena.is_dry_run()) return x;
  ctx.kernels.synchronize();
  join_levels(coarse, x, saved.within_group);
  return x;
}

void Scorer::add_noise(LaneContext& ctx, const Tensor& x, Saved& saved) const {
  Context products = ctx.fp32();
  saved.clean = saved.logits;
  saved.noise_input = on_host_side(ctx, noise_.front().forward(products, x, saved.noise));
  saved.normal = host_like(ctx, saved.clean);
  saved.logits = host_like(ctx, saved.clean);
  if (ctx.arena.is_dry_run()) return;
  ctx.kernels.synchronize();
  draw_noise(prefix_, ctx.tokens, saved);
}

Tensor Scorer::input_grad(Context& ctx, Saved& saved, const Grads& grads) const {
  const Tensor d = like(ctx, saved.scores);
  if (options_.function == ScoreFunction::softmax) {
    ctx.kernels.softmax_grad(saved.scores, grads.scores, d);
  } else {
    ctx.kernels.sigmoid_grad(saved.scores, grads.scores, d);
  }
  if (grads.logits.defined()) ctx.kernels.add(d, grads.logits, d);
  return input_grad_of_logits(ctx, saved, d, grads);
}

Tensor Scorer::input_grad_of_logits(Context& ctx, Saved& saved, Tensor d, const Grads& grads) const {
  Context products = ctx.fp32();
  Tensor dx;
  const auto add_dx = [&](const Linear& linear, Linear::Saved& of, const Tensor& dy) {
    if (dx.defined()) return linear.input_grad_into(products, of, dy, dx, Accumulate::yes);
    dx = linear.input_grad(products, of, dy);
  };
  if (saved.noise_input.defined()) {
    d = on_host_side(ctx, d);
    const Tensor dv = host_like(ctx, d);
    if (!ctx.arena.is_dry_run()) {
      ctx.kernels.synchronize();
      through_noise(saved, grads, d, dv);
    }
    add_dx(noise_.front(), saved.noise, dv);
  }
  if (!coarse_.empty()) {
    d = on_host_side(ctx, d);
    const Tensor d_coarse = ctx.arena.take_result("router", ctx.dtype, {d.dim(0), options_.coarse_groups});
    if (!ctx.arena.is_dry_run()) {
      ctx.kernels.synchronize();
      join_levels_grad(saved.within_group, d, d_coarse);
    }
    add_dx(coarse_.front(), saved.coarse, d_coarse);
  }
  for (size_t i = layers_.size(); i-- > 1;) {
    d = layers_[i].input_grad(products, saved.layers[i], d);
    ctx.kernels.activation_grad(Activation::gelu, saved.before_gelu[i - 1], d, d);
  }
  add_dx(layers_.front(), saved.layers.front(), d);
  if (saved.factors.defined() && !ctx.arena.is_dry_run()) {
    dx = on_host_side(ctx, dx);
    ctx.kernels.synchronize();
    multiply(dx, saved.factors, dx);
  }
  return dx;
}

void Scorer::weight_grad(Context& ctx, const Saved& saved) {
  Context products = ctx.fp32();
  for (size_t i = 0; i < layers_.size(); ++i) layers_[i].weight_grad(products, saved.layers[i]);
  if (!coarse_.empty()) coarse_.front().weight_grad(products, saved.coarse);
  if (saved.noise_input.defined()) noise_.front().weight_grad(products, saved.noise);
}

void Scorer::each_parameter(const ParameterVisitor& visit) {
  layers_.back().each_parameter(visit);
  for (size_t i = 0; i + 1 < layers_.size(); ++i) layers_[i].each_parameter(visit);
  for (Linear& coarse : coarse_) coarse.each_parameter(visit);
  for (Linear& noise : noise_) noise.each_parameter(visit);
}

void join_levels(const Tensor& coarse, const Tensor& logits, const Tensor& within) {
  const int64_t size = logits.dim(1) / coarse.dim(1);
  with_element_type(logits, [&]<class T>(std::type_identity<T>) {
    for (int64_t g = 0; g < coarse.numel(); ++g) {
      T* const logit = logits.data<T>() + g * size;
      T* const share = within.data<T>() + g * size;
      const double largest = *std::max_element(logit, logit + size);
      double sum = 0.0;
      for (int64_t i = 0; i < size; ++i) sum += std::exp(double{logit[i]} - largest);
      const double log_sum = largest + std::log(sum);
      for (int64_t i = 0; i < size; ++i) {
        share[i] = static_cast<T>(std::exp(double{logit[i]} - log_sum));
        logit[i] = static_cast<T>(double{coarse.data<T>()[g]} + double{logit[i]} - log_sum);
      }
    }
  });
}

void join_levels_grad(const Tensor& within, const Tensor& dlogits, const Tensor& d_coarse) {
  const int64_t size = dlogits.dim(1) / d_coarse.dim(1);
  with_element_type(dlogits, [&]<class T>(std::type_identity<T>) {
    for (int64_t g = 0; g < d_coarse.numel(); ++g) {
      T* const d = dlogits.data<T>() + g * size;
      const T* const share = within.data<T>() + g * size;
      double sum = 0.0;
      for (int64_t i = 0; i < size; ++i) sum += d[i];
      for (int64_t i = 0; i < size; ++i) d[i] = static_cast<T>(double{d[i]} - double{share[i]} * sum);
      d_coarse.data<T>()[g] = static_cast<T>(sum);
    }
  });
}

}  // namespace cadre
