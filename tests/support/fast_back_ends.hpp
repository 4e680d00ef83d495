// SPDX-License-Identifier: Apache-2.0
// The back ends that are compared with the reference, all in fp32.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>

#include "layers/kernels/gpu/cuda.hpp"
#include "layers/kernels/kernels.hpp"
#include "tests/support/gpu_twin.hpp"

namespace cadre::test {

struct FastBackEnd {
  const char* name;
  std::unique_ptr<Kernels> (*make)();  // null where this machine has it not; CADRE_SKIP_WITHOUT says why
  // Of the bounds that tests derive from functions exact to a unit in the last place. CUDA's are within two.
  double slack;
};

inline std::unique_ptr<Kernels> make_fp32_cpu() { return make_cpu_kernels(Precision::fp32); }
// With oneDNN, where there is one, and a copy of each weight.
inline std::unique_ptr<Kernels> make_fp32_cpu_packed() {
  const char* products = has_onednn() ? "onednn-packed" : "nt=bbbb nn=bbbb tn=bbbb copy=1111";
  return make_cpu_kernels(Precision::fp32,
                          {.bits = RowBits::as_in_training, .products = ProductChoice::parse(products, "products")});
}
inline std::unique_ptr<Kernels> make_twin_in_place() {
  return make_gpu_twin(TwinOrder::ascending, TwinMemory::reached);
}
inline std::unique_ptr<Kernels> make_twin_with_copies() {
  return make_gpu_twin(TwinOrder::descending, TwinMemory::copied);
}

// The first CUDA device; none where there is none.
inline std::unique_ptr<Kernels> make_on_cuda() {
  return find_cuda_devices().list.empty() ? nullptr : make_cuda_kernels(0, Precision::fp32);
}

inline constexpr FastBackEnd kFastBackEnds[] = {
    {"Cpu", make_fp32_cpu, 1.0},          {"CpuPacked", make_fp32_cpu_packed, 1.0},
    {"GpuTwin", make_twin_in_place, 2.0}, {"GpuTwinCopies", make_twin_with_copies, 2.0},
    {"Cuda", make_on_cuda, 2.0},
};

inline void PrintTo(const FastBackEnd& back_end, std::ostream* out) { *out << back_end.name; }

// For INSTANTIATE_TEST_SUITE_P.
inline auto each_fast_back_end() { return testing::ValuesIn(kFastBackEnds); }
inline std::string name_of_back_end(const testing::TestParamInfo<FastBackEnd>& info) { return info.param.name; }

}  // namespace cadre::test

// In a test: skips it where the back end is not to be had.
#define CADRE_SKIP_WITHOUT(kernels) \
  if (!(kernels)) GTEST_SKIP() << ::cadre::find_cuda_devices().why_none
