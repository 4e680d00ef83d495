// SPDX-License-Identifier: Apache-2.0
// Moves experts between the ranks of a running job, within one step. Values and moments do not change while the passes of a
// step run: they travel then, in pieces, into memory of their own. The summed gradients of the step follow as soon as they
// are complete. Between the gradient norm and the update all ranks take the new maps, and the rank that holds an expert from
// then on updates it; an update is a function of these four, so its bits are the same. At the end of a step there is one set
// of maps, and the whole state under it.
//
// Each rank holds as many experts as before: one that comes takes the memory of one that leaves. On the host only values are
// copied there at the switch; moments stay where they arrived, and the update reads gradients there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "comm/group/section_streams.hpp"
#include "runtime/optim/optimizer.hpp"
#include "runtime/parallel/worker.hpp"

namespace cadre {

// What one move should bring to a rank at most, unless the experts of one layer are more: it lies beside the state of the rank.
inline constexpr size_t kMostArrivingBytes = size_t{256} << 20;

class ExpertMove {
 public:
  // Collective over `group`, which has the ranks of the worker's world and is used by nothing else, with equal maps: before the
  // passes of a step and after GradientReduction::start_values(). All but `maps` outlive this object. One that is destroyed
  // before finish() has changed nothing.
  ExpertMove(Worker& worker, Optimizer& optimizer, const Communicator& group, ExpertMaps maps,
             const StreamOptions& pieces = {});
  ~ExpertMove();
  ExpertMove(const ExpertMove&) = delete;
  ExpertMove& operator=(const ExpertMove&) = delete;

  // Collective, when the gradients of the step are summed and no rank reads experts under the old maps any more. Waits for
  // what is still on its way and takes the new maps. Returns the bytes that all ranks received. Gradients of experts that came
  // lie where they arrived until this object is destroyed; then those of the experts that left are in their place again.
  int64_t finish();

 private:
  struct Arrival;
  struct Arrivals;
  class Travel;

  void take(const Arrival& arrival);

  Worker& worker_;
  Optimizer& optimizer_;
  ExpertMaps maps_;
  std::shared_ptr<Arrivals> arrivals_;
  Request travel_;
  std::vector<std::pair<Parameter*, Tensor>> grads_;  // of parameters whose gradient lies elsewhere: their own memory
};

}  // namespace cadre
