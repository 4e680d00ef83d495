// SPDX-License-Identifier: Apache-2.0
// Calls that block have a deadline too: they run on a thread of their own, and the caller waits for that.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace cadre {

// Runs `call` and throws what it throws. `what` names it. Throws as a wait does when it takes longer than the default
// deadline or a rank dies; then `call` is left behind, maybe forever, so it must own all it touches.
void blocking_call(const std::string& what, std::function<void()> call);

// With a result that the call fills in.
template <class Result>
Result blocking_call(const std::string& what, std::function<void(Result&)> call) {
  const auto result = std::make_shared<Result>();
  blocking_call(what, [result, call = std::move(call)] { call(*result); });
  return std::move(*result);
}

// Without threads the caller makes the call itself, and it has no deadline: for libraries that no second thread may call.
void allow_threads_for_blocking_calls(bool allowed);

// Whether a thread was left behind: then the process cannot end in an orderly way, by MPI_Finalize and destructors.
bool calls_were_left_behind();
void note_call_left_behind();

}  // namespace cadre
