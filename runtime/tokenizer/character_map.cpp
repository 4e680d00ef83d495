// SPDX-License-Identifier: Apache-2.0
#include "runtime/tokenizer/character_map.hpp"

#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/tokenizer/protobuf.hpp"

namespace cadre {
namespace {

static_assert(std::endian::native == std::endian::little, "character maps are read as they are");

// Fields of the messages of a model, as sentencepiece_model.proto numbers them.
constexpr uint64_t kNormalizer = 3;    // of a model
constexpr uint64_t kDenormalizer = 5;  // of a model
constexpr uint64_t kCharacterMap = 2;  // of both

// A unit of the double array (Darts-clone) that a map of characters is: where its children are, and which byte leads here.
// One with the highest bit set is a value and has no children.
bool is_value(uint32_t unit) { return unit >> 31 != 0; }
bool has_value(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t offset_of(uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }
uint32_t value_of(uint32_t unit) { return unit & 0x7FFFFFFF; }

// u32 size of the array in bytes, the array, and the texts that values point into, each with a zero behind it.
void check_map(std::string_view map) {
  if (map.empty()) return;
  uint32_t size = 0;
  std::memcpy(&size, take_bytes(map, sizeof(size)).data(), sizeof(size));
  const std::string_view array = take_bytes(map, size);
  std::vector<uint32_t> units(array.size() / sizeof(uint32_t));
  if (units.empty() || map.empty() || map.back() != '\0') refuse_damaged_model();
  std::memcpy(units.data(), array.data(), units.size() * sizeof(uint32_t));
  for (size_t i = 0; i < units.size(); ++i) {
    if (is_value(units[i])) continue;
    const size_t children = i ^ offset_of(units[i]);
    if ((children | 0xFF) >= units.size()) refuse_damaged_model();
    if (has_value(units[i]) && value_of(units[children]) >= map.size()) refuse_damaged_model();
  }
}

}  // namespace

void check_character_maps(std::string_view model) {
  while (!model.empty()) {
    auto [number, value, content] = take_field(model);
    if ((number != kNormalizer && number != kDenormalizer) || !content) continue;
    while (!content->empty()) {
      const auto [inner, value_inside, map] = take_field(*content);
      if (inner == kCharacterMap && map) check_map(*map);
    }
  }
}

}  // namespace cadre
