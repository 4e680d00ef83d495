// SPDX-License-Identifier: Apache-2.0
#include "layers/kernels/cpu/features.hpp"

#include <hwy/targets.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

constexpr const char* kVariable = "CADRE_MAX_CPU_ISA";

// Of x86. A smaller bit stands for a newer instruction set; what Highway has above AVX512 is not compiled in.
struct Limit {
  std::string_view name;
  int64_t newest_target;
  bool allows_bf16;
};
constexpr Limit kLimits[] = {
    {"SSE4", HWY_SSE4, false},
    {"AVX2", HWY_AVX2, false},
    {"AVX512", HWY_AVX3, false},
    {"AVX512_BF16", HWY_AVX3, true},
};

// Null: no limit.
const Limit* limit() {
  const char* name = std::getenv(kVariable);
  if (name == nullptr) return nullptr;
  CADRE_CHECK(HWY_ARCH_X86, fmt::format("{} = {}: this CPU is not an x86", kVariable, name), "unset it");
  const auto* const found = std::ranges::find(kLimits, std::string_view(name), &Limit::name);
  CADRE_CHECK(found != std::end(kLimits), fmt::format("{} = {} is no instruction set", kVariable, name),
              "SSE4, AVX2, AVX512 or AVX512_BF16, or unset it");
  return found;
}

}  // namespace

void apply_cpu_limit() {
  if (const Limit* found = limit()) hwy::DisableTargets(found->newest_target - 1);
}

bool cpu_multiplies_bf16() {
#if HWY_ARCH_X86
  const Limit* found = limit();
  return (found == nullptr || found->allows_bf16) && __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

std::string_view cpu_vector_target() {
  const int64_t usable = hwy::SupportedTargets() & (HWY_TARGETS);
  return hwy::TargetName(usable & -usable);
}

}  // namespace cadre
