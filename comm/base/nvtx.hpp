// SPDX-License-Identifier: Apache-2.0
// Ranges that NVIDIA's profilers show. nvtx.cpp where the CUDA Toolkit was found, else no_nvtx.cpp, which does nothing.
#pragma once

namespace cadre {

// On the calling thread; ranges nest.
void nvtx_push(const char* name);
void nvtx_pop();

}  // namespace cadre
