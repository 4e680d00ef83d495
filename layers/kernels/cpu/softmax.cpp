// SPDX-License-Identifier: Apache-2.0
// Softmax and cross-entropy: the exponentials of a row are computed once and scaled.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/softmax.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

// out[i] = exp(x[i] - largest), and the sum of them. out may be x.
double exp_row(const float* x, float* out, float largest, size_t width) {
  const Float shift = splat(largest);
  return sum_vectors(width, [=](size_t i, auto lanes) HWY_ATTR {
    const Float e = exponential(hn::Sub(lanes.load(x + i), shift));
    lanes.store(e, out + i);
    return e;
  });
}

void scale_row(float* row, float factor, size_t width) {
  const Float scale = splat(factor);
  for_each_vector(width,
                  [=](size_t i, auto lanes) HWY_ATTR { lanes.store(hn::Mul(scale, lanes.load(row + i)), row + i); });
}

void softmax_rows(const float* x, float* y, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, x += width, y += width) {
    const double sum = exp_row(x, y, max_of_row(x, width), width);
    scale_row(y, static_cast<float>(1.0 / sum), width);
  }
}

void softmax_grad_rows(const float* y, const float* dy, float* dx, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, y += width, dy += width, dx += width) {
    const double dot = sum_vectors(
        width, [=](size_t i, auto lanes) HWY_ATTR { return hn::Mul(lanes.load(y + i), lanes.load(dy + i)); });
    const Float mean = splat(static_cast<float>(dot));
    for_each_vector(width, [=](size_t i, auto lanes) HWY_ATTR {
      lanes.store(hn::Mul(lanes.load(y + i), hn::Sub(lanes.load(dy + i), mean)), dx + i);
    });
  }
}

void cross_entropy_rows(const float* logits, const int32_t* targets, float* losses, size_t num_rows, size_t width) {
  for (size_t t = 0; t < num_rows; ++t, logits += width) {
    losses[t] = 0.0F;
    if (targets[t] < 0) continue;
    const float largest = max_of_row(logits, width);
    const Float shift = splat(largest);
    const double sum = sum_vectors(
        width, [=](size_t i, auto lanes) HWY_ATTR { return exponential(hn::Sub(lanes.load(logits + i), shift)); });
    losses[t] =
        static_cast<float>(static_cast<double>(largest) - static_cast<double>(logits[targets[t]]) + std::log(sum));
  }
}

void cross_entropy_grad_rows(const float* logits, const int32_t* targets, double scale, float* dlogits, size_t num_rows,
                             size_t width) {
  for (size_t t = 0; t < num_rows; ++t, logits += width, dlogits += width) {
    if (targets[t] < 0) {
      std::fill_n(dlogits, width, 0.0F);
      continue;
    }
    const double sum = exp_row(logits, dlogits, max_of_row(logits, width), width);
    const auto target_exp = static_cast<double>(dlogits[targets[t]]);
    scale_row(dlogits, static_cast<float>(scale / sum), width);
    dlogits[targets[t]] = static_cast<float>(scale * (target_exp / sum - 1.0));
  }
}

// The K largest scores of a row: vectors skip what cannot enter, the few others are inserted one by one.

// The best scores met so far, best first.
struct Ranking {
  float* scores;
  int32_t* ids;
  size_t capacity;
  size_t size = 0;

  bool is_full() const { return size == capacity; }
  float worst() const { return scores[size - 1]; }

  // Behind its equals: ids come in rising order, and ties go to the lower one.
  void insert(float score, int32_t id) {
    if (is_full() && !(score > worst())) return;
    size_t place = is_full() ? size - 1 : size++;
    for (; place > 0 && score > scores[place - 1]; --place) {
      scores[place] = scores[place - 1];
      ids[place] = ids[place - 1];
    }
    scores[place] = score;
    ids[place] = id;
  }
};

// bias may be null. Returns false, at the first of them, when a score is NaN.
bool rank_row(const float* scores, const float* bias, size_t width, Ranking& ranking) {
  bool has_nan = false;
  for_each_vector(width, [&](size_t i, auto lanes) HWY_ATTR {
    Float score = lanes.load_or(scores + i, splat(-std::numeric_limits<float>::infinity()));
    if (bias != nullptr) score = hn::Add(score, lanes.load(bias + i));
    has_nan = has_nan || !hn::AllFalse(FloatTag(), hn::IsNaN(score));
    if (ranking.is_full() && hn::AllFalse(FloatTag(), hn::Gt(score, splat(ranking.worst())))) return;
    HWY_ALIGN float candidates[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(score, FloatTag(), candidates);
    const size_t count = std::min(hn::Lanes(FloatTag()), width - i);
    for (size_t lane = 0; lane < count; ++lane) ranking.insert(candidates[lane], static_cast<int32_t>(i + lane));
  });
  return !has_nan;
}

// Returns the first row that holds a NaN, num_rows if there is none. `best` has room for num_chosen floats.
size_t rank_rows(const float* scores, const float* bias, int32_t* ids, float* best, size_t num_rows, size_t width,
                 size_t num_chosen) {
  for (size_t t = 0; t < num_rows; ++t) {
    Ranking ranking{best, ids + t * num_chosen, num_chosen};
    if (!rank_row(scores + t * width, bias, width, ranking)) return t;
  }
  return num_rows;
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace cadre {

HWY_EXPORT(softmax_rows);
HWY_EXPORT(softmax_grad_rows);
HWY_EXPORT(cross_entropy_rows);
HWY_EXPORT(cross_entropy_grad_rows);

HWY_EXPORT(rank_rows);

using cpu::num_rows_of;
using cpu::width_of;

void CpuKernels::softmax(const Tensor& x, const Tensor& y) const {
  const size_t width = width_of(x);
  cpu::for_pieces(threads_, num_rows_of(x), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(softmax_rows)(x.data<float>() + first * width, y.data<float>() + first * width, count, width);
  });
}

void CpuKernels::softmax_grad(const Tensor& y, const Tensor& dy, const Tensor& dx) const {
  const size_t width = width_of(y);
  cpu::for_pieces(threads_, num_rows_of(y), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(softmax_grad_rows)
    (y.data<float>() + first * width, dy.data<float>() + first * width, dx.data<float>() + first * width, count, width);
  });
}

void CpuKernels::cross_entropy(const Tensor& logits, const Tensor& targets, const Tensor& losses) const {
  const size_t width = width_of(logits);
  cpu::for_pieces(threads_, num_rows_of(logits), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_rows)
    (logits.data<float>() + first * width, targets.data<int32_t>() + first, losses.data<float>() + first, count, width);
  });
}

void CpuKernels::cross_entropy_grad(const Tensor& logits, const Tensor& targets, double scale,
                                    const Tensor& dlogits) const {
  const size_t width = width_of(logits);
  cpu::for_pieces(threads_, num_rows_of(logits), width, [&](size_t first, size_t count) {
    HWY_DYNAMIC_DISPATCH(cross_entropy_grad_rows)
    (logits.data<float>() + first * width, targets.data<int32_t>() + first, scale,
     dlogits.data<float>() + first * width, count, width);
  });
}

void CpuKernels::top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const {
  const auto num_chosen = static_cast<size_t>(ids.dim(1));
  const size_t width = width_of(scores);
  if (num_chosen == 0) return;
  std::atomic<size_t> bad_row = num_rows_of(scores);
  cpu::for_pieces(threads_, num_rows_of(scores), width, [&](size_t first, size_t count) {
    const size_t bad = HWY_DYNAMIC_DISPATCH(rank_rows)(scores.data<float>() + first * width, cpu::data_or_null(bias),
                                                       ids.data<int32_t>() + first * num_chosen,
                                                       cpu::part_scratch(num_chosen), count, width, num_chosen);
    if (bad == count) return;
    for (size_t known = bad_row; first + bad < known && !bad_row.compare_exchange_weak(known, first + bad);) {
    }
  });
  if (bad_row < num_rows_of(scores)) {
    throw Error(ErrorKind::numerics, fmt::format("router scores of token row {} hold a NaN", bad_row.load()),
                "the activations or the router weights are no longer finite; lower the learning rate");
  }
}

}  // namespace cadre
#endif  // HWY_ONCE
