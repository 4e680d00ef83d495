// SPDX-License-Identifier: Apache-2.0
// What trace files call things; their writer and their reader share it.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "comm/base/trace.hpp"

namespace cadre {

inline constexpr const char* kTraceSchema = "cadre.trace";
inline constexpr int kTraceVersion = 1;

// In the order of TraceKind.
inline constexpr std::array<std::string_view, kNumTraceKinds> kTraceKindNames = {"compute", "wait", "step", "op",
                                                                                 "flight"};

inline std::string_view name_of(TraceKind kind) { return kTraceKindNames.at(static_cast<size_t>(kind)); }

}  // namespace cadre
