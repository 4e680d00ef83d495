// SPDX-License-Identifier: Apache-2.0
#include "layers/router/losses.hpp"

#include <algorithm>
#include <numeric>

#include "layers/router/loss_terms.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

void add_scaled(double scale, const std::vector<double>& term, std::vector<double>& sum) {
  sum.resize(term.size(), 0.0);
  for (size_t i = 0; i < term.size(); ++i) sum[i] += scale * term[i];
}

bool counts_experts(const LossOptions& options) {
  return options.expert_variance > 0.0 && options.expert_form.kind == VarianceForm::Kind::counts;
}

bool counts_devices(const LossOptions& options) {
  return options.device_variance > 0.0 && options.device_form.kind == VarianceForm::Kind::counts;
}

Term variance_term(const VarianceForm& form, std::span<const double> loads) {
  return form.kind == VarianceForm::Kind::cv2 ? squared_cv(loads, form.variance) : variance_of(loads, form.variance);
}

Term scaled(Term term, double factor) {
  term.value *= factor;
  for (double& slope : term.slope) slope *= factor;
  return term;
}

// var(counts) / ideal^2, with the derivative by p of counts = slots p.
Term of_counts(std::span<const double> counts, double ideal, Variance variance, double slots) {
  Term term = scaled(variance_of(counts, variance), 1.0 / (ideal * ideal));
  for (double& slope : term.slope) slope *= slots;
  return term;
}

Tensor as_tensor(LaneContext& ctx, const std::vector<double>& values, int64_t num_experts) {
  const auto rows = static_cast<int64_t>(values.size()) / num_experts;
  const Tensor tensor = ctx.arena.take_host("router", ctx.dtype, {rows, num_experts});
  for (size_t i = 0; i < values.size(); ++i) set_element(tensor, static_cast<int64_t>(i), values[i]);
  return tensor;
}

}  // namespace

Losses::Losses(const LossOptions& options, int num_experts, int top_k)
    : options_(options), num_experts_(num_experts), top_k_(top_k) {}

bool Losses::any() const { return need_sums() || options_.balance > 0.0 || options_.z > 0.0; }

bool Losses::need_sums() const {
  for (int column = 0; column < kNumColumns; ++column) {
    if (needs(static_cast<Column>(column))) return true;
  }
  return false;
}

bool Losses::needs(Column column) const {
  const LossOptions& o = options_;
  const bool whole = o.balance > 0.0 && !o.by_sequence;
  switch (column) {
    case kCount: return whole || o.expert > 0.0 || o.device > 0.0 || counts_experts(o) || counts_devices(o);
    case kProb: return whole || o.kl > 0.0 || o.expert_variance > 0.0 || o.device_variance > 0.0;
    case kScore: return o.expert > 0.0 || o.device > 0.0 || o.communication > 0.0;
    case kWeight: return o.importance > 0.0;
    case kLoad: return o.load > 0.0;
    case kVisit: return o.communication > 0.0;
    default: return false;
  }
}

size_t Losses::width_of(Column column) const {
  return static_cast<size_t>(column == kVisit ? options_.devices : num_experts_);
}

// The first sum is the number of tokens; the columns that are needed follow.
std::vector<double> Losses::column(const std::vector<double>& sums, Column wanted, double scale) const {
  size_t first = 1;
  for (int before = 0; before < wanted; ++before) {
    if (needs(static_cast<Column>(before))) first += width_of(static_cast<Column>(before));
  }
  std::vector<double> values(width_of(wanted), 0.0);
  if (!needs(wanted)) return values;
  for (size_t i = 0; i < values.size(); ++i) values[i] = scale * sums[first + i];
  return values;
}

void Losses::take_results(LaneContext& ctx, int64_t num_tokens, RouteResult& result) const {
  if (by_sequence()) result.best = ctx.arena.take_result("router", DType::i32, {num_tokens, top_k_});
  if (by_sequence() || needs(kProb)) result.inverse = ctx.arena.take("router", ctx.dtype, {num_tokens, 1});
}

// A sum over tokens is a product with one number for each of them.
void Losses::launch_sums(LaneContext& ctx, const RouteResult& result, Routing& routing) const {
  const Kernels& kernels = ctx.kernels.fp32();
  const int64_t num_tokens = result.scores.dim(0);
  routing.best = result.best;
  if (result.inverse.defined()) {
    const int64_t length = by_sequence() ? tokens_a_sequence(ctx.tokens, routing) : num_tokens;
    const int64_t num_sums = by_sequence() ? num_tokens / length : 1;
    routing.share_sums = ctx.arena.take_result("router", ctx.dtype, {num_sums, num_experts_});
    for (int64_t i = 0; i < num_sums; ++i) {
      kernels.linear_weight_grad(result.scores.rows(i * length, length), result.inverse.rows(i * length, length),
                                 routing.share_sums.rows(i, 1), Accumulate::no);
    }
  }
  if (needs(kScore)) {
    const Tensor ones = ctx.arena.take_host("router", ctx.dtype, {num_tokens, 1});
    for (int64_t t = 0; t < num_tokens; ++t) set_element(ones, t, 1.0);
    routing.score_sums = ctx.arena.take_result("router", ctx.dtype, {1, num_experts_});
    kernels.linear_weight_grad(result.scores, ones, routing.score_sums, Accumulate::no);
  }
}

RouteSlopes Losses::slopes(LaneContext& ctx, const Saved& saved) const {
  RouteSlopes slopes;
  if (!saved.by_sequence.empty()) {
    std::vector<double> by_share = saved.by_sequence;
    for (size_t i = 0; !saved.by_prob.empty() && i < by_share.size(); ++i) {
      by_share[i] += saved.by_prob[i % saved.by_prob.size()];
    }
    slopes.by_share = as_tensor(ctx, by_share, num_experts_);
  } else if (!saved.by_prob.empty()) {
    slopes.by_share = as_tensor(ctx, saved.by_prob, num_experts_);
  }
  if (!saved.by_score.empty()) slopes.by_score = as_tensor(ctx, saved.by_score, num_experts_);
  return slopes;
}

void Losses::begin(LaneContext& ctx, const Routing& routing, const Scorer::Saved& score, Saved& saved) const {
  saved = {};
  if (by_sequence()) begin_sequences(ctx, routing, saved);
  if (!need_sums() || ctx.arena.is_dry_run()) return;
  saved.sums = {static_cast<double>(routing.num_tokens())};
  const auto append = [&](Column column, const auto& make) {
    if (!needs(column)) return;
    const auto values = make();
    saved.sums.insert(saved.sums.end(), values.begin(), values.end());
  };
  append(kCount, [&] { return routing.counts; });
  append(kProb, [&] {
    return routing.share_sums.defined() ? column_sums(routing.share_sums, /*normalised=*/false)
                                        : column_sums(routing.scores, /*normalised=*/true);
  });
  append(kScore, [&] {
    return routing.score_sums.defined() ? column_sums(routing.score_sums, /*normalised=*/false)
                                        : column_sums(routing.scores, /*normalised=*/false);
  });
  append(kWeight, [&] { return weight_sums(routing); });
  append(kLoad, [&] { return noisy_load(score, top_k_); });
  append(kVisit, [&] {
    return device_visits(routing, options_.devices, devices_of(num_experts_, options_.devices, options_.layout));
  });
}

void Losses::finish(const LaneContext& ctx, const Routing& routing, Saved& saved) const {
  if (ctx.arena.is_dry_run()) return;
  // A loss F over the T tokens of the micro-batch weighs T token_scale, of which this rank reports its tokens' share.
  const double share = ctx.token_scale * static_cast<double>(routing.num_tokens());
  if (options_.z > 0.0) saved.value += options_.z * ctx.token_scale * sum_of_squares(routing.logits);
  if (!saved.by_sequence.empty()) saved.value += sequence_value(ctx, routing, saved);
  const double tokens = saved.sums.empty() ? 0.0 : saved.sums.front();
  if (tokens == 0.0) return;
  const std::vector<double> counts = column(saved.sums, kCount, 1.0);
  const std::vector<double> probs = column(saved.sums, kProb, 1.0 / tokens);
  const std::vector<double> scores = column(saved.sums, kScore, 1.0 / tokens);
  const auto num_experts = static_cast<double>(num_experts_);

  // `derivative_scale`: of the loss by one token's number, given that by the mean or by the sum.
  const auto add = [&](double weight, const Term& term, const std::vector<double>& slope, double derivative_scale,
                       std::vector<double>& slopes) {
    saved.value += weight * share * term.value;
    add_scaled(weight * derivative_scale, slope, slopes);
  };
  const auto of_devices = [&](const std::vector<double>& numbers) {
    return by_device(numbers, options_.devices, options_.layout);
  };
  const auto of_experts = [&](const std::vector<double>& slope) {
    return by_expert(slope, num_experts_, options_.layout);
  };
  const double by_mean = ctx.token_scale;
  const double by_sum = ctx.token_scale * tokens;
  if (options_.balance > 0.0 && !options_.by_sequence) {
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
    const Term term = weighted_sum(total > 0.0 ? num_experts / total : 0.0, counts, probs);
    add(options_.balance, term, term.slope, by_mean, saved.by_prob);
  }
  if (options_.kl > 0.0) {
    const Term term = kl_to_uniform(probs);
    add(options_.kl, term, term.slope, by_mean, saved.by_prob);
  }
  const double slots = tokens * top_k_;
  if (options_.expert_variance > 0.0) {
    const VarianceForm& form = options_.expert_form;
    const Term term = counts_experts(options_) ? of_counts(counts, slots / num_experts, form.variance, slots)
                                               : variance_term(form, probs);
    add(options_.expert_variance, term, term.slope, by_mean, saved.by_prob);
  }
  if (options_.device_variance > 0.0) {
    const VarianceForm& form = options_.device_form;
    const Term term = counts_devices(options_)
                          ? of_counts(of_devices(counts), slots / options_.devices, form.variance, slots)
                          : variance_term(form, of_devices(probs));
    add(options_.device_variance, term, of_experts(term.slope), by_mean, saved.by_prob);
  }
  const double frequency = num_experts / (top_k_ * tokens);
  if (options_.expert > 0.0) {
    const Term term = weighted_sum(frequency, counts, scores);
    add(options_.expert, term, term.slope, by_mean, saved.by_score);
  }
  if (options_.device > 0.0) {
    std::vector<double> mean_counts = of_devices(counts);
    const std::vector<double> sizes = of_devices(std::vector<double>(counts.size(), 1.0));
    for (size_t d = 0; d < sizes.size(); ++d) mean_counts[d] /= std::max(1.0, sizes[d]);
    const Term term = weighted_sum(frequency, mean_counts, of_devices(scores));
    add(options_.device, term, of_experts(term.slope), by_mean, saved.by_score);
  }
  if (options_.communication > 0.0) {
    const double factor = options_.devices / (options_.devices_a_token * tokens);
    const Term term = weighted_sum(factor, column(saved.sums, kVisit, 1.0), of_devices(scores));
    add(options_.communication, term, of_experts(term.slope), by_mean, saved.by_score);
  }
  if (options_.importance > 0.0) {
    const Term term = variance_term(options_.importance_form, column(saved.sums, kWeight, 1.0));
    add(options_.importance, term, term.slope, by_sum, saved.by_weight);
  }
  if (options_.load > 0.0) {
    const Term term = squared_cv(column(saved.sums, kLoad, 1.0), Variance::population);
    add(options_.load, term, term.slope, by_sum, saved.by_load);
  }
}

void Losses::begin_sequences(LaneContext& ctx, const Routing& routing, Saved& saved) const {
  const ArenaScope scope(ctx.arena);
  Tensor best = routing.best;
  if (!best.defined()) {
    best = ctx.arena.take_result("router", DType::i32, {routing.num_tokens(), top_k_});
    ctx.kernels.top_k(routing.scores, Tensor(), best);
  }
  if (ctx.arena.is_dry_run()) return;
  saved.by_sequence =
      sequence_slopes(options_.balance * ctx.token_scale, tokens_a_sequence(ctx.tokens, routing), best, num_experts_);
}

double Losses::sequence_value(const LaneContext& ctx, const Routing& routing, const Saved& saved) const {
  if (!routing.share_sums.defined()) {
    return sequence_loss(saved.by_sequence, tokens_a_sequence(ctx.tokens, routing), routing.scores);
  }
  double value = 0.0;
  for (size_t i = 0; i < saved.by_sequence.size(); ++i) {
    value += saved.by_sequence[i] * element(routing.share_sums, static_cast<int64_t>(i));
  }
  return value;
}

void Losses::add_weights_grad(const Routing& routing, const Saved& saved, const Tensor& dweights) const {
  if (saved.by_weight.empty()) return;
  with_element_type(dweights, [&]<class T>(std::type_identity<T>) {
    for (int64_t i = 0; i < routing.ids.numel(); ++i) {
      const int32_t expert = routing.ids.data<int32_t>()[i];
      if (expert >= 0) dweights.data<T>()[i] += static_cast<T>(saved.by_weight[static_cast<size_t>(expert)]);
    }
  });
}

void Losses::add_grad(const LaneContext& ctx, const Routing& routing, const Scorer::Saved& score, const Saved& saved,
                      const Scorer::Grads& grads) const {
  if (!saved.by_prob.empty()) add_prob_grad(saved.by_prob, routing.num_tokens(), routing.scores, grads.scores);
  if (!saved.by_sequence.empty()) {
    add_prob_grad(saved.by_sequence, tokens_a_sequence(ctx.tokens, routing), routing.scores, grads.scores);
  }
  if (!saved.by_score.empty()) add_row(saved.by_score, grads.scores);
  if (options_.z > 0.0) add_z_grad(options_.z * ctx.token_scale, routing.logits, grads.logits);
  if (!saved.by_load.empty()) add_noisy_load_grad(score, top_k_, saved.by_load, grads);
}

}  // namespace cadre
