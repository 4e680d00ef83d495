// SPDX-License-Identifier: Apache-2.0
// Counter-based random numbers (Philox 4x32-10, Salmon et al. 2011). A number is a pure function of
// (seed, purpose, id, index): no state, so it does not depend on rank, rank count, thread or order of calls.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace cadre {

// One stream of numbers. `purpose` keeps streams apart that share a seed ("init", "data", "sample"); `id` is global:
// a token, an expert, a hashed parameter name.
class Random {
 public:
  Random(uint64_t seed, std::string_view purpose, uint64_t id);

  uint64_t bits(uint64_t index) const;                   // 64 random bits
  std::array<uint64_t, 2> block(uint64_t index) const;   // 128 for the price of 64, which are the first of them
  double uniform(uint64_t index) const;                  // in [0, 1), 53 bits
  double normal(uint64_t index) const;                   // N(0, 1), Box-Muller
  uint64_t below(uint64_t bound, uint64_t index) const;  // in [0, bound), bound >= 1

 private:
  uint64_t key_;
  uint64_t id_;
};

// A 64-bit hash of a name, the same on every machine (xxHash).
uint64_t hash_name(std::string_view name);

}  // namespace cadre
