// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/phases.hpp"

#include <algorithm>
#include <array>

namespace cadre {

PhaseClass class_of(std::string_view phase) {
  static constexpr std::array<std::string_view, 3> kReductions = {"metrics", "expert counts", "gradient norm"};
  if (phase.starts_with("dispatch") || phase.starts_with("combine")) return PhaseClass::exchange;
  if (phase.starts_with("send ") || phase.starts_with("receive ")) return PhaseClass::pipeline;
  if (phase.ends_with("gradient reduction")) return PhaseClass::reduction;
  if (std::ranges::find(kReductions, phase) != kReductions.end()) return PhaseClass::reduction;
  return PhaseClass::compute;
}

const char* name_of(PhaseClass phase_class) {
  switch (phase_class) {
    case PhaseClass::compute: return "compute";
    case PhaseClass::exchange: return "exchange";
    case PhaseClass::pipeline: return "pipeline";
    case PhaseClass::reduction: return "reduction";
  }
  return "";
}

}  // namespace cadre
