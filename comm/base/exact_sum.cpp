// SPDX-License-Identifier: Apache-2.0
#include "comm/base/exact_sum.hpp"

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr int kDigitBits = 32;
constexpr uint64_t kDigitMask = 0xffffffff;
constexpr int kMantissaBits = 52;
constexpr int kLowestExponent = -1074;  // of the last bit of the smallest double
constexpr uint64_t kExponentMask = 0x7ff;

}  // namespace

ExactSum::ExactSum(std::vector<int64_t> words) : words_(std::move(words)) { CADRE_ASSERT(words_.size() == kWords); }

void ExactSum::add(double x) {
  if (!std::isfinite(x)) {
    ++words_[kDigits + (std::isnan(x) ? 0 : x > 0.0 ? 1 : 2)];
    return;
  }
  const auto bits = std::bit_cast<uint64_t>(x);
  const uint64_t exponent = (bits >> kMantissaBits) & kExponentMask;
  const uint64_t fraction = bits & ((uint64_t{1} << kMantissaBits) - 1);
  const uint64_t mantissa = exponent == 0 ? fraction : fraction | uint64_t{1} << kMantissaBits;
  const uint64_t shift = exponent == 0 ? 0 : exponent - 1;  // the last bit counts 2^(shift - 1074)
  const uint64_t within = shift % kDigitBits;
  const uint64_t low = mantissa << within;
  const uint64_t high = within == 0 ? 0 : mantissa >> (64 - within);
  const int64_t sign = x < 0.0 ? -1 : 1;
  int64_t* const digit = words_.data() + shift / kDigitBits;
  digit[0] += sign * static_cast<int64_t>(low & kDigitMask);
  digit[1] += sign * static_cast<int64_t>(low >> kDigitBits);
  digit[2] += sign * static_cast<int64_t>(high);
}

double ExactSum::value() const {
  const int64_t* const special = words_.data() + kDigits;
  if (special[0] > 0 || (special[1] > 0 && special[2] > 0)) return std::numeric_limits<double>::quiet_NaN();
  if (special[1] > 0) return std::numeric_limits<double>::infinity();
  if (special[2] > 0) return -std::numeric_limits<double>::infinity();

  std::vector<int64_t> digits(words_.begin(), words_.begin() + kDigits);
  const auto carry = [&digits] {
    for (size_t i = 0; i + 1 < kDigits; ++i) {
      digits[i + 1] += digits[i] >> kDigitBits;
      digits[i] &= static_cast<int64_t>(kDigitMask);
    }
  };
  carry();
  const bool negative = digits.back() < 0;
  if (negative) {
    for (int64_t& digit : digits) digit = -digit;
    carry();
  }
  int first = static_cast<int>(kDigits) - 1;
  while (first >= 0 && digits[static_cast<size_t>(first)] == 0) --first;
  if (first < 0) return 0.0;
  const auto at = [&digits](int i) {
    return i < 0 ? uint64_t{0} : static_cast<uint64_t>(digits[static_cast<size_t>(i)]);
  };
  // The first 64 bits; one of those behind them that is set sets the last, so that the conversion rounds as the whole number.
  uint64_t top = at(first) << kDigitBits | at(first - 1);
  const int zeros = std::countl_zero(top);
  top = top << zeros | (at(first - 2) << zeros) >> kDigitBits;
  bool rest = ((at(first - 2) << zeros) & kDigitMask) != 0;
  for (int i = first - 3; i >= 0 && !rest; --i) rest = at(i) != 0;
  top |= rest ? 1U : 0U;
  const double magnitude = std::ldexp(static_cast<double>(top), kDigitBits * (first - 1) - zeros + kLowestExponent);
  return negative ? -magnitude : magnitude;
}

}  // namespace cadre
