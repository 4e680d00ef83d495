// SPDX-License-Identifier: Apache-2.0
#include "runtime/config/recompute.hpp"

#include <charconv>
#include <string_view>

#include "comm/base/check.hpp"

namespace cadre {

Recompute recompute_of(const TrainConfig& config) {
  constexpr std::string_view kEvery = "every:";
  const std::string_view text = config.recompute;
  if (text == "none") return {};
  if (text == "activations") return {.activations = true};
  if (text == "mla_up") return {.activations = true, .mla_up = true};
  if (text == "attention") return {.activations = true, .attention = true};
  if (text == "layer") return {.activations = true, .every_layer = 1};
  Recompute recompute = {.activations = true};
  bool valid = text.starts_with(kEvery);
  if (valid) {
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data() + kEvery.size(), end, recompute.every_layer);
    valid = error == std::errc() && stop == end && recompute.every_layer >= 1;
  }
  CADRE_CHECK(
      valid,
      fmt::format(
          "train.recompute = {}, allowed: none | activations | mla_up | attention | layer | every:N with N >= 1", text),
      "layer needs least memory, and about a third more time; every:2 half of that");
  return recompute;
}

}  // namespace cadre
