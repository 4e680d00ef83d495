// SPDX-License-Identifier: Apache-2.0
// Two files of named tensors: what differs by more than it may.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "comm/base/check.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace cadre::test {

// A tensor as `cadre score` names it.
struct ScoreTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

inline std::vector<double> values_of(const ScoreTensor& tensor) {
  std::vector<double> values(tensor.bytes.size() / size_of(tensor.dtype));
  const auto read = [&]<class T>(T) {
    for (size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, &tensor.bytes[i * sizeof value], sizeof value);
      values[i] = static_cast<double>(value);
    }
  };
  if (tensor.dtype == DType::f32) read(float{});
  if (tensor.dtype == DType::f64) read(double{});
  if (tensor.dtype == DType::i64) read(int64_t{});
  return values;
}

inline std::vector<ScoreTensor> tensors_of(const SafetensorsReader& reader) {
  std::vector<ScoreTensor> tensors;
  for (const TensorEntry& entry : reader.entries()) {
    tensors.push_back({entry.name, entry.dtype.value_or(DType::u8), entry.shape, reader.bytes(entry)});
  }
  return tensors;
}

// Logits, hidden states and routing weights element by element, the loss, gradients by Euclidean norm relative to the
// expected one; integers are equal.
struct ScoreTolerance {
  double values = 0.0;
  double loss = 0.0;
  double gradients = 0.0;
};

// In fp32 a number has 6e-8 of itself; these leave room for the sums of a small model and none for a wrong term.
inline constexpr ScoreTolerance kFp32Tolerance = {.values = 2e-5, .loss = 1e-6, .gradients = 1e-4};

inline std::string difference_of(const ScoreTensor& actual, const ScoreTensor& expected,
                                 const ScoreTolerance& tolerance) {
  if (actual.dtype != expected.dtype || actual.shape != expected.shape) return "another shape or element type";
  const bool identical = actual.bytes.size() == expected.bytes.size() &&
                         std::memcmp(actual.bytes.data(), expected.bytes.data(), actual.bytes.size()) == 0;
  if (identical) return "";
  const std::vector<double> a = values_of(actual);
  const std::vector<double> b = values_of(expected);
  double largest = 0.0;
  double difference_squares = 0.0;
  double squares = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;  // a NaN too
    difference_squares += difference * difference;
    squares += b[i] * b[i];
  }
  const bool is_gradient = expected.name.starts_with("grad.");
  const double found = is_gradient ? std::sqrt(difference_squares) / std::max(std::sqrt(squares), 1e-30) : largest;
  double allowed = expected.name == "loss" ? tolerance.loss : (is_gradient ? tolerance.gradients : tolerance.values);
  if (expected.dtype == DType::i64) allowed = 0.0;
  if (found <= allowed && allowed > 0.0) return "";
  return fmt::format("differs by {:.3g}, allowed {:.3g}", found, allowed);
}

// One line for each tensor of `expected` that `actual` lacks or has otherwise; the input tokens do not count.
inline std::vector<std::string> differences_of(const std::vector<ScoreTensor>& actual,
                                               const std::vector<ScoreTensor>& expected,
                                               const ScoreTolerance& tolerance) {
  std::vector<std::string> lines;
  for (const ScoreTensor& tensor : expected) {
    if (tensor.name == "tokens") continue;
    const auto found = std::ranges::find(actual, tensor.name, &ScoreTensor::name);
    const std::string line = found == actual.end() ? "is missing" : difference_of(*found, tensor, tolerance);
    if (!line.empty()) lines.push_back(fmt::format("{}: {}", tensor.name, line));
  }
  return lines;
}

}  // namespace cadre::test
