// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "comm/group/communicator.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {

struct BenchLayerOptions {
  int64_t tokens = 2048;  // a rank
  int64_t hidden = 512;
  int64_t ffn = 1024;
  int experts = 16;
  int top_k = 4;
  Activation activation = Activation::silu;
  std::string strategy = "flat";
  Precision precision = Precision::fp32;
  int64_t iterations = 20;
  int64_t warmup = 3;
  std::string json;  // file for the report, or empty
};

// Collective over `world`. Rank 0 prints and writes.
void bench_layer(const Communicator& world, const BenchLayerOptions& options);

}  // namespace cadre
