// SPDX-License-Identifier: Apache-2.0
// What the vector loops share: walking over a row with a tail, sums, and exp, logistic and normal functions. Included
// once for each instruction set by Highway's foreach_target.h, hence the guard that toggles.
// clang-format off
#if defined(CADRE_CPU_VECTOR_INL_HPP) == defined(HWY_TARGET_TOGGLE)
#ifdef CADRE_CPU_VECTOR_INL_HPP
#undef CADRE_CPU_VECTOR_INL_HPP
#else
#define CADRE_CPU_VECTOR_INL_HPP
#endif
// clang-format on

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

HWY_BEFORE_NAMESPACE();
namespace cadre {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using Float = hn::Vec<FloatTag>;

HWY_INLINE Float splat(float value) { return hn::Set(FloatTag(), value); }

// How a loop body touches memory: a whole vector, or the first `count` lanes of one.
struct WholeVector {
  HWY_INLINE Float load(const float* from) const { return hn::LoadU(FloatTag(), from); }
  HWY_INLINE Float load_or(const float* from, Float /*elsewhere*/) const { return load(from); }
  HWY_INLINE void store(Float value, float* to) const { hn::StoreU(value, FloatTag(), to); }
  HWY_INLINE Float keep(Float value) const { return value; }
};

struct PartOfVector {
  size_t count;

  // Through a buffer: not every instruction set can load part of a vector without touching what lies behind it.
  HWY_INLINE Float load(const float* from) const {
    HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)] = {};
    for (size_t i = 0; i < count; ++i) lanes[i] = from[i];
    return hn::Load(FloatTag(), lanes);
  }
  HWY_INLINE Float load_or(const float* from, Float elsewhere) const {
    return hn::IfThenElse(hn::FirstN(FloatTag(), count), load(from), elsewhere);
  }
  HWY_INLINE void store(Float value, float* to) const {
    HWY_ALIGN float lanes[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(value, FloatTag(), lanes);
    for (size_t i = 0; i < count; ++i) to[i] = lanes[i];
  }
  HWY_INLINE Float keep(Float value) const { return hn::IfThenElseZero(hn::FirstN(FloatTag(), count), value); }
};

// body(i, lanes) for each vector of [0, count).
template <class Body>
HWY_INLINE void for_each_vector(size_t count, Body&& body) {
  const size_t lanes = hn::Lanes(FloatTag());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, WholeVector{});
  if (i < count) body(i, PartOfVector{count - i});
}

// The sum of term(i, lanes) over [0, count): in fp32 inside a block, in fp64 over the blocks, so the error does not
// grow with count.
template <class Term>
HWY_INLINE double sum_vectors(size_t count, Term&& term) {
  constexpr size_t kBlock = 1024;
  const FloatTag tag;
  const size_t lanes = hn::Lanes(tag);
  double total = 0.0;
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(count, begin + kBlock);
    Float sum0 = hn::Zero(tag);
    Float sum1 = sum0;
    Float sum2 = sum0;
    Float sum3 = sum0;
    size_t i = begin;
    for (; i + 4 * lanes <= end; i += 4 * lanes) {
      sum0 = hn::Add(sum0, term(i, WholeVector{}));
      sum1 = hn::Add(sum1, term(i + lanes, WholeVector{}));
      sum2 = hn::Add(sum2, term(i + 2 * lanes, WholeVector{}));
      sum3 = hn::Add(sum3, term(i + 3 * lanes, WholeVector{}));
    }
    for (; i + lanes <= end; i += lanes) sum0 = hn::Add(sum0, term(i, WholeVector{}));
    if (i < end) {
      const PartOfVector tail{end - i};
      sum1 = hn::Add(sum1, tail.keep(term(i, tail)));
    }
    const Float block = hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3));
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(tag, block)));
  }
  return total;
}

// The sums of the lanes of four vectors, times a factor, go to or are added to the first `count` of four floats. Through the
// same operations whatever count is.
inline constexpr int kLaneSums = 4;
HWY_INLINE void add_lanes(const Float* vectors, float factor, bool adds, float* to, int64_t count) {
  float old[kLaneSums] = {};
  float sums[kLaneSums];
  if (adds) std::copy_n(to, count, old);
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kLaneSums; ++i) sums[i] = factor * hn::GetLane(vectors[i]) + old[i];
#else
  const FloatTag tag;
  const hn::Repartition<double, FloatTag> pairs;
  const hn::Full128<float> four;
  const auto merge = [&](Float x, Float y) HWY_ATTR {
    return hn::BitCast(pairs, hn::Add(hn::InterleaveLower(tag, x, y), hn::InterleaveUpper(tag, x, y)));
  };
  const auto first = merge(vectors[0], vectors[1]);
  const auto second = merge(vectors[2], vectors[3]);
  HWY_ALIGN float blocks[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(hn::Add(hn::BitCast(tag, hn::InterleaveLower(pairs, first, second)),
                    hn::BitCast(tag, hn::InterleaveUpper(pairs, first, second))),
            tag, blocks);
  auto sum = hn::Load(four, blocks);
  for (size_t block = 4; block < hn::Lanes(tag); block += 4) sum = hn::Add(sum, hn::Load(four, blocks + block));
  hn::StoreU(hn::MulAdd(hn::Set(four, factor), sum, hn::LoadU(four, old)), four, sums);
#endif
  std::copy_n(sums, count, to);
}

HWY_INLINE float max_of_row(const float* row, size_t count) {
  const FloatTag tag;
  const Float lowest = splat(-std::numeric_limits<float>::infinity());
  Float largest = lowest;
  for_each_vector(count,
                  [&](size_t i, auto lanes) HWY_ATTR { largest = hn::Max(largest, lanes.load_or(row + i, lowest)); });
  return hn::GetLane(hn::MaxOfLanes(tag, largest));
}

// e^x, within 1 ulp for results that are normal numbers. Unlike hn::Exp a NaN stays a NaN.
HWY_INLINE Float exponential(Float x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(FloatTag(), x)); }

// 1 / (1 + e^-x) and 1 minus that, both within 3 ulp.
struct Logistic {
  Float value;
  Float complement;
};
HWY_INLINE Logistic logistic(Float x) {
  const Float one = splat(1.0F);
  const Float small = exponential(hn::Neg(hn::Abs(x)));
  const Float large_side = hn::Div(one, hn::Add(one, small));
  const Float small_side = hn::Mul(small, large_side);
  const auto negative = hn::Lt(x, hn::Zero(FloatTag()));
  return {hn::IfThenElse(negative, small_side, large_side), hn::IfThenElse(negative, large_side, small_side)};
}

// Distribution function and density of N(0, 1), both within 5 ulp where they are normal numbers. The upper tail is
// e^(-x^2/2) t P(t) with t = 1 / (1 + 0.3 |x|), where P interpolates the quotient with degree 9 in the Chebyshev points of
// 0 <= |x| <= 14.5, relative error 5e-9.
struct Normal {
  Float distribution;
  Float density;
};
HWY_INLINE Normal normal(Float x) {
  const Float one = splat(1.0F);
  const Float distance = hn::Min(hn::Abs(x), splat(14.5F));  // beyond it, all is below the smallest float
  const Float square = hn::Mul(distance, distance);
  const Float square_error = hn::MulSub(distance, distance, square);  // what rounding took from the square
  const Float bell = exponential(hn::Mul(square, splat(-0.5F)));
  const Float shape = hn::NegMulAdd(hn::Mul(square_error, splat(0.5F)), bell, bell);  // e^(-x^2/2)

  const Float t = hn::Div(one, hn::MulAdd(distance, splat(0.3F), one));
  Float p = splat(-0.0209560245F);
  p = hn::MulAdd(p, t, splat(0.114257455F));
  p = hn::MulAdd(p, t, splat(-0.23252441F));
  p = hn::MulAdd(p, t, splat(0.19755058F));
  p = hn::MulAdd(p, t, splat(-0.0842134804F));
  p = hn::MulAdd(p, t, splat(0.0987113789F));
  p = hn::MulAdd(p, t, splat(0.0775179043F));
  p = hn::MulAdd(p, t, splat(0.110418409F));
  p = hn::MulAdd(p, t, splat(0.119550429F));
  p = hn::MulAdd(p, t, splat(0.119687751F));
  const Float tail = hn::Mul(hn::Mul(t, p), shape);

  const auto negative = hn::Lt(x, hn::Zero(FloatTag()));
  constexpr float kInverseRootTwoPi = 0.398942280F;
  return {hn::IfThenElse(negative, tail, hn::Sub(one, tail)), hn::Mul(shape, splat(kInverseRootTwoPi))};
}

}  // namespace HWY_NAMESPACE
}  // namespace cadre
HWY_AFTER_NAMESPACE();

#endif  // the guard that toggles
