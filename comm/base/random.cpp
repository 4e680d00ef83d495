// SPDX-License-Identifier: Apache-2.0
#include "comm/base/random.hpp"

#include <Random123/philox.h>
#include <xxhash.h>

#include <cmath>
#include <numbers>

namespace cadre {
namespace {

struct Block {
  uint64_t low;
  uint64_t high;
};

Block philox(uint64_t key, uint64_t id, uint64_t index) {
  const r123::Philox4x32::ctr_type counter = {{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                                               static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)}};
  const r123::Philox4x32::key_type philox_key = {{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}};
  const auto out = r123::Philox4x32()(counter, philox_key);
  return {out[0] | (static_cast<uint64_t>(out[1]) << 32), out[2] | (static_cast<uint64_t>(out[3]) << 32)};
}

double to_unit(uint64_t bits) { return static_cast<double>(bits >> 11) * 0x1.0p-53; }

}  // namespace

uint64_t hash_name(std::string_view name) { return XXH64(name.data(), name.size(), 0); }

Random::Random(uint64_t seed, std::string_view purpose, uint64_t id)
    : key_(XXH64(purpose.data(), purpose.size(), seed)), id_(id) {}

uint64_t Random::bits(uint64_t index) const { return philox(key_, id_, index).low; }

std::array<uint64_t, 2> Random::block(uint64_t index) const {
  const Block block = philox(key_, id_, index);
  return {block.low, block.high};
}

double Random::uniform(uint64_t index) const { return to_unit(bits(index)); }

double Random::normal(uint64_t index) const {
  const Block block = philox(key_, id_, index);
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_unit(block.low)));
  return radius * std::cos(2.0 * std::numbers::pi * to_unit(block.high));
}

uint64_t Random::below(uint64_t bound, uint64_t index) const {
  __extension__ using Wide = unsigned __int128;
  // Multiply-shift: the bias is below bound / 2^64.
  return static_cast<uint64_t>((static_cast<Wide>(bits(index)) * bound) >> 64);
}

}  // namespace cadre
