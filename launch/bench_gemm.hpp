// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

namespace cadre {

struct BenchGemmOptions {
  int64_t iterations = 10;
  std::string json;  // file for the report, or empty
};

// One process: the three products with a weight at the sizes experts see, for every back end that is built in.
void bench_gemm(const BenchGemmOptions& options);

}  // namespace cadre
