// SPDX-License-Identifier: Apache-2.0
#include "comm/base/check.hpp"
#include "comm/device/nccl.hpp"

namespace cadre {

std::string nccl_version() { return ""; }

std::unique_ptr<Transport> make_nccl_transport(std::unique_ptr<Transport>, int) {
  throw Error(ErrorKind::environment, "this build has no NCCL",
              "build the preset cuda where NCCL is installed, or use exchange.transport=mpi");
}

}  // namespace cadre
