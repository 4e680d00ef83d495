// SPDX-License-Identifier: Apache-2.0
// What the back end takes from the CPU, as it is or under the limits that tests/support/cpu.sh sets.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "tests/support/messages.hpp"

namespace cadre::cpu_features_test {
namespace {

std::string value_of(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr ? "" : value;
}

// As the kernel saw it in CPUID; "" on another architecture.
bool cpu_has(const std::string& flag) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  return text.find(" " + flag + " ") != std::string::npos;
}

TEST(CpuFeatures, VectorLoopsObeyTheLimit) {
  const std::string limit = value_of("CADRE_MAX_CPU_ISA");
  const std::string target(cpu_vector_target());
  if (limit == "SSE4" || limit == "AVX2") {
    EXPECT_EQ(target, limit);
  } else if (limit.starts_with("AVX512")) {
    EXPECT_EQ(target, "AVX3");
  } else if (cpu_has("avx512bw")) {
    EXPECT_TRUE(target.starts_with("AVX3")) << target;
  } else if (cpu_has("avx2")) {
    EXPECT_EQ(target, "AVX2");
  }
}

// oneDNN offers bf16 products on every AVX-512, emulated where there are no instructions for them.
TEST(CpuFeatures, Bf16IsMultipliedOnlyByInstructions) {
  const std::string limit = value_of("CADRE_MAX_CPU_ISA");
  const std::string onednn_limit = value_of("ONEDNN_MAX_CPU_ISA");
  const bool multiplies = cpu_has("avx512_bf16") && (limit.empty() || limit == "AVX512_BF16");
  EXPECT_EQ(cpu_multiplies_bf16(), multiplies);
  if (!multiplies || (!onednn_limit.empty() && onednn_limit != "AVX512_CORE_BF16")) {
    EXPECT_FALSE(multiplies_bf16());
  }
}

TEST(CpuFeatures, EmulationReachesOpenBlas) {
  const std::string wanted = value_of("OPENBLAS_CORETYPE");
  if (!wanted.empty()) {
    EXPECT_EQ(blas_core_name(), wanted);
  }
}

TEST(CpuFeatures, RefusesALimitThatItDoesNotKnow) {
  const std::string before = value_of("CADRE_MAX_CPU_ISA");
  ::setenv("CADRE_MAX_CPU_ISA", "AVX9", 1);
  test::expect_message(test::message_of([] { cpu_multiplies_bf16(); }),
                       {"CADRE_MAX_CPU_ISA = AVX9", "SSE4, AVX2, AVX512 or AVX512_BF16"});
  before.empty() ? ::unsetenv("CADRE_MAX_CPU_ISA") : ::setenv("CADRE_MAX_CPU_ISA", before.c_str(), 1);
}

}  // namespace
}  // namespace cadre::cpu_features_test
