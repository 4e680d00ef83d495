// SPDX-License-Identifier: Apache-2.0
// Times of what a back end computes, taken where it computes.
#pragma once

namespace cadre {

class DeviceClock {
 public:
  virtual ~DeviceClock() = default;
  virtual void start() = 0;
  // Since start, when all that was called in between is done.
  virtual double stop_ms() = 0;
};

}  // namespace cadre
