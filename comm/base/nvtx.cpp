// SPDX-License-Identifier: Apache-2.0
#include "comm/base/nvtx.hpp"

#include <nvtx3/nvToolsExt.h>

namespace cadre {

void nvtx_push(const char* name) {
  // By one thread: NVTX replaces its own functions when the first of them is called, and reads them without a lock.
  static const bool is_ready = [] {
    nvtxInitialize(nullptr);
    return true;
  }();
  if (is_ready) static_cast<void>(nvtxRangePushA(name));
}
void nvtx_pop() { static_cast<void>(nvtxRangePop()); }

}  // namespace cadre
