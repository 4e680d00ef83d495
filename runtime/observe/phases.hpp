// SPDX-License-Identifier: Apache-2.0
// What the phases of a trace are part of, for the sums of a report.
#pragma once

#include <string_view>

namespace cadre {

enum class PhaseClass { compute, exchange, pipeline, reduction };

PhaseClass class_of(std::string_view phase);
const char* name_of(PhaseClass phase_class);

// The phases of step spans.
inline constexpr std::string_view kStepPhase = "step";
inline constexpr std::string_view kSerialStepPhase = "step without overlap";
// Of the span of all ops of a step with the sums of gradients, and of those that are a forward and a backward pass at once.
inline constexpr std::string_view kAllPassesPhase = "passes";
inline constexpr std::string_view kOverlappedOpPhase = "overlapped";

}  // namespace cadre
