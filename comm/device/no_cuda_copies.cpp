// SPDX-License-Identifier: Apache-2.0
#include "comm/base/check.hpp"
#include "comm/device/staged.hpp"

namespace cadre {

std::shared_ptr<DeviceCopies> make_cuda_copies(int) {
  throw Error(ErrorKind::environment, "this build has no CUDA", "build the preset cuda, or use compute.device=cpu");
}

}  // namespace cadre
