// SPDX-License-Identifier: Apache-2.0
// The transport of ranks that have a CUDA device each. Sums of f32, other sums and gathers of 64 KiB and more, and rows of a
// ragged all-to-all go over NCCL, those of each group on a stream of its own; everything else, and who belongs to a group, is left to the
// transport beneath.
// Memory that the device does not reach goes through pinned memory of the host.
#pragma once

#include <memory>
#include <string>

#include "comm/transport/transport.hpp"

namespace cadre {

// "NCCL 2.28.9", or empty in a build without.
std::string nccl_version();

// Collective over the ranks of `base`; no two of them may have the same device. It follows a queue that is a
// cudaStream_t of that device. A group of which an operation is given up is aborted on this rank. Throws ErrorKind::environment where NCCL refuses, or in a build without.
std::unique_ptr<Transport> make_nccl_transport(std::unique_ptr<Transport> base, int device);

}  // namespace cadre
