// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule/eight_steps.hpp"

namespace cadre {

OpList eight_steps(std::array<Phase, 2> phases, PlaceInPipeline place, int num_micro_batches) {
  const int to_middle = place.to_middle;
  const int to_end = place.from_end + 1;  // this rank included
  Emitter emit(phases[0], phases[1]);

  // 1: F0
  repeat(2 * to_middle, [&] { emit.forward(0); });
  // 2: F0 F1
  repeat(to_end, [&] {
    emit.forward(0);
    emit.forward(1);
  });
  // 3: b1 W F1
  repeat(to_middle, [&] {
    emit.backward_input(1);
    emit.weight();
    emit.forward(1);
  });
  // 4: {F0&B1} {F1&B0}; in the middle the gradients for the first backward are still on their way, and its
  // forward does not wait for them
  const int main = num_micro_batches - 2 * to_middle - to_end;
  for (int i = 0; i < main; ++i) {
    if (to_middle == 0 && i == 0) {
      emit.forward(0);
      emit.backward(1);
    } else {
      emit.overlapped(0, 1);
    }
    emit.overlapped(1, 0);
  }
  // 5: B1 {F1&B0}
  repeat(to_middle, [&] {
    emit.backward(1);
    emit.overlapped(1, 0);
  });
  // 6: B1 B0, split from the half on
  for (int i = 0; i < 2 * to_end; ++i) {
    const int phase = 1 - i % 2;
    if (i < to_end) {
      emit.backward(phase);
    } else {
      emit.backward_input(phase);
    }
  }
  // 7: W b0
  repeat(to_middle, [&] {
    emit.weight();
    emit.backward_input(0);
  });
  // 8: W
  repeat(to_end, [&] { emit.weight(); });
  return emit.take();
}

}  // namespace cadre
