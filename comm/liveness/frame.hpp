// SPDX-License-Identifier: Apache-2.0
// What processes of a job send each other beside MPI. Every frame has the same size, so a connection needs no lengths.
#pragma once

#include <array>
#include <cstdint>
#include <type_traits>

namespace cadre {

struct Frame {
  // All but `answer` flood: each process applies the first copy that it receives and forwards it to its other neighbours.
  enum class Kind : uint32_t {
    question,  // where is everyone?
    answer,    // goes back to `subject`, on the way its question came
    view,      // the set of processes that are gone, as `origin` sees it
    lost,      // `subject` died
    farewell,  // `origin` ends, and that is no death
    job_ends,  // the same, and the launcher ends the job: deaths from here on are not news
    end_job,   // every process ends with `code`
  };
  static constexpr uint32_t kNumKinds = 7;

  Kind kind = Kind::question;
  int32_t origin = 0;   // the rank that made it
  int32_t subject = 0;  // a rank
  int32_t code = 0;
  // Counts the floods of `origin`, from 1; of an answer that of its question.
  uint64_t number = 0;
  uint64_t hash = 0;  // view
  // answer
  int64_t step = -1;
  int64_t nanoseconds = -1;  // at this place; -1: not known
  int32_t micro_batch = -1;
  int32_t layer = -1;
  uint32_t waits = 0;
  std::array<char, 36> phase{};
};
static_assert(std::is_trivially_copyable_v<Frame> && sizeof(Frame) == 96);

}  // namespace cadre
