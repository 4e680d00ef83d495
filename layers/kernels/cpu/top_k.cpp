// SPDX-License-Identifier: Apache-2.0
// The K largest scores of a row: vectors skip what cannot enter, the few others are inserted one by one.
#include <algorithm>
#include <limits>

#include "layers/kernels/cpu/cpu.hpp"

// clang-format off: foreach_target.h compiles this file once for each instruction set, and must come first.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "layers/kernels/cpu/top_k.cpp"
#include <hwy/foreach_target.h>

#include "layers/kernels/cpu/vector_inl.hpp"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

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

HWY_EXPORT(rank_rows);

void CpuKernels::top_k(const Tensor& scores, const Tensor& bias, const Tensor& ids) const {
  const auto num_chosen = static_cast<size_t>(ids.dim(1));
  const size_t num_rows = cpu::num_rows_of(scores);
  if (num_chosen == 0) return;
  const size_t bad_row =
      HWY_DYNAMIC_DISPATCH(rank_rows)(scores.data<float>(), cpu::data_or_null(bias), ids.data<int32_t>(),
                                      cpu::scratch_floats(num_chosen), num_rows, cpu::width_of(scores), num_chosen);
  if (bad_row < num_rows) {
    throw Error(ErrorKind::numerics, fmt::format("router scores of token row {} hold a NaN", bad_row),
                "the activations or the router weights are no longer finite; lower the learning rate");
  }
}

}  // namespace cadre
#endif  // HWY_ONCE
