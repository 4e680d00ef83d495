// SPDX-License-Identifier: Apache-2.0
// Compares what `cadre score` wrote with what is expected: compare_scores ACTUAL EXPECTED [TOLERANCE]. Prints each tensor
// that differs by more than it may, or than TOLERANCE, and how many were compared; the exit code is 1 when any differs.
#include <fmt/format.h>

#include <string>

#include "tests/support/score_comparison.hpp"

int main(int argc, char** argv) {
  using namespace cadre;
  if (argc < 3) return 2;
  const SafetensorsReader actual(argv[1]);
  const SafetensorsReader expected(argv[2]);
  const auto wanted = test::tensors_of(expected);
  test::ScoreTolerance tolerance = test::kFp32Tolerance;
  if (argc > 3) tolerance.values = tolerance.loss = tolerance.gradients = std::stod(argv[3]);
  const auto lines = test::differences_of(test::tensors_of(actual), wanted, tolerance);
  for (const std::string& line : lines) fmt::print("{}\n", line);
  fmt::print("{} tensors compared\n", wanted.size());
  return lines.empty() ? 0 : 1;
}
