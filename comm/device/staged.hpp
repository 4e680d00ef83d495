// SPDX-License-Identifier: Apache-2.0
// A transport for ranks whose rows lie on a device, where the library beneath cannot be handed memory of one: what it sends
// and receives goes through memory of the host.
#pragma once

#include <cstddef>
#include <memory>

#include "comm/base/buffer.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {

// The device of a rank, as far as copies go.
class DeviceCopies {
 public:
  virtual ~DeviceCopies() = default;
  virtual bool is_device_memory(const std::byte* data) const = 0;
  virtual Memory& staging() = 0;  // memory of the host from and to which copies are fast
  // Complete when finish() returns.
  virtual void to_host(std::byte* host, const std::byte* device, size_t bytes) = 0;
  virtual void to_device(std::byte* device, const std::byte* host, size_t bytes) = 0;
  virtual void finish() = 0;
};

// Pinned memory and cudaMemcpy. Throws ErrorKind::environment in a build without CUDA.
std::shared_ptr<DeviceCopies> make_cuda_copies(int device);

// The ranks of `base`. Memory of a device holds what is to be sent before an operation starts; what is received is there
// when the operation is complete.
std::unique_ptr<Transport> make_staged_transport(std::unique_ptr<Transport> base, std::shared_ptr<DeviceCopies> device);

}  // namespace cadre
