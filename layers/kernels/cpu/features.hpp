// SPDX-License-Identifier: Apache-2.0
// Which instructions of the CPU the back end uses. The environment variable CADRE_MAX_CPU_ISA = SSE4, AVX2, AVX512 or
// AVX512_BF16 forbids everything newer, so that one machine can show what another computes; OpenBLAS and oneDNN have
// OPENBLAS_CORETYPE and ONEDNN_MAX_CPU_ISA for that.
#pragma once

#include <string_view>

namespace cadre {

// Obeys CADRE_MAX_CPU_ISA from the next vector loop on. Throws Error where its value is none of the four, or where the CPU
// is not an x86. Programs call it before they make kernels.
void apply_cpu_limit();

// Whether the CPU has instructions that multiply bf16 (x86: AVX512_BF16), and the limit allows them.
bool cpu_multiplies_bf16();

// Highway's name of the instruction set that vector loops use now: SSE4, AVX2, AVX3 (that is AVX-512), NEON, ...
std::string_view cpu_vector_target();

}  // namespace cadre
