// SPDX-License-Identifier: Apache-2.0
// Calls that block have a deadline too: they run on a thread of their own, and the caller waits for that.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "comm/job/job_context.hpp"

namespace cadre {

// Runs `call` and throws what it throws. `what` names it. Throws as a wait does when it takes longer than the deadline of
// the job or a rank dies; then `call` is left behind, maybe forever, so it must own all it touches. In a job without threads
// for calls (JobContext) the caller makes the call itself, and it has no deadline.
void blocking_call(JobContext& job, const std::string& what, std::function<void()> call);

// With a result that the call fills in.
template <class Result>
Result blocking_call(JobContext& job, const std::string& what, std::function<void(Result&)> call) {
  const auto result = std::make_shared<Result>();
  blocking_call(job, what, [result, call = std::move(call)] { call(*result); });
  return std::move(*result);
}

}  // namespace cadre
