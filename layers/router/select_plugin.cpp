// SPDX-License-Identifier: Apache-2.0
// The rule of a plugin.
#include "layers/router/plugin.hpp"

namespace cadre {

std::unique_ptr<Selector> make_from_plugin(const SelectOptions& options) {
  const Plugin plugin(options.plugin);
  auto* const make = plugin.function<decltype(cadre_make_selector)>("cadre_make_selector", "model.router = plugin");
  std::unique_ptr<Selector> selector(make(options));
  CADRE_CHECK(selector != nullptr, fmt::format("model.plugin = {} made no selector", options.plugin));
  CADRE_CHECK(selector->num_slots() >= 1 && selector->num_slots() <= options.top_k,
              fmt::format("model.plugin = {}: its selector has {} slots, allowed: 1 to num_experts_per_tok = {}",
                          options.plugin, selector->num_slots(), options.top_k));
  return selector;
}

}  // namespace cadre
