// SPDX-License-Identifier: Apache-2.0
#include "comm/base/nvtx.hpp"

#include <nvtx3/nvToolsExt.h>

namespace cadre {

void nvtx_push(const char* name) { static_cast<void>(nvtxRangePushA(name)); }
void nvtx_pop() { static_cast<void>(nvtxRangePop()); }

}  // namespace cadre
