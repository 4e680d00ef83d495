// SPDX-License-Identifier: Apache-2.0
#include "comm/job/job_context.hpp"

#include <utility>

namespace cadre {

JobContext::~JobContext() {
  for (Abandoned& each : abandoned_) {
    if (each.operation->outlives_job()) static_cast<void>(new Abandoned(std::move(each)));
  }
}

void JobContext::keep_abandoned(Abandoned abandoned) noexcept {
  const std::lock_guard lock(mutex_);
  abandoned_.push_back(std::move(abandoned));
}

}  // namespace cadre
