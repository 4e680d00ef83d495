// SPDX-License-Identifier: Apache-2.0
// Sums of doubles that do not depend on their order, because they are exact: fixed point over the whole range of the type
// (Kulisch), rounded once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace cadre {

class ExactSum {
 public:
  ExactSum() : words_(kWords, 0) {}
  // Of words() of one sum, or of several added up word by word, as an all-reduce does. Together at most 2^30 numbers.
  explicit ExactSum(std::vector<int64_t> words);

  void add(double x);
  const std::vector<int64_t>& words() const { return words_; }
  // The sum, rounded to the nearest double; infinite or NaN where an IEEE sum in any order would be.
  double value() const;

 private:
  // Digit i counts 2^(32 i - 1074). The largest double has its last bit in digit 65.
  static constexpr size_t kDigits = 68;
  static constexpr size_t kWords = kDigits + 3;  // and how many are NaN, infinite, and minus infinite

  std::vector<int64_t> words_;
};

}  // namespace cadre
