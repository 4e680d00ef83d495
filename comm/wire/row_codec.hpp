// SPDX-License-Identifier: Apache-2.0
// Puts rows into the form they travel in, and back. The host does it at once; the codec of a device does it in the order of
// what the device is told, so that rows need not be there yet.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/base/buffer.hpp"
#include "comm/job/request.hpp"
#include "comm/wire/elements.hpp"
#include "comm/wire/format.hpp"

namespace cadre {

class RowCodec {
 public:
  virtual ~RowCodec() = default;

  // `count` rows, as computed and anywhere, to `wire`, where one follows the other; and back to `values`. Both lie in
  // memory(). The index is read before the call returns.
  virtual void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const = 0;
  virtual void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const = 0;

  // Where rows lie that travel.
  virtual Memory& memory() const = 0;
  // Complete when all rows are where they belong that were encoded or decoded so far.
  virtual Request done() const = 0;
};

// Any format; done when it returns.
const RowCodec& host_codec();

}  // namespace cadre
