// SPDX-License-Identifier: Apache-2.0
#include "runtime/experts/named_experts.hpp"

#include "comm/base/check.hpp"

namespace cadre {

void check_unnamed(const ModelConfig& model) {
  const auto check = [](const char* key, const std::string& value) {
    CADRE_CHECK(value.empty(), fmt::format("model.{} = {}, allowed: none", key, value),
                "it names experts whose ids change; remove it from config.json and set it anew afterwards");
  };
  const std::string& kinds = model.routing.expert_kinds;
  CADRE_CHECK(kinds == "same" || kinds == "mixture",
              fmt::format("model.expert_kinds = {}, allowed: same | mixture", kinds),
              "what an expert is made of follows from its id, which would change");
  check("dead_experts", model.routing.dead_experts);
  check("expert_conditions", model.routing.expert_conditions);
}

}  // namespace cadre
