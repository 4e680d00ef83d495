// SPDX-License-Identifier: Apache-2.0
// Steps of a save that either succeed on all ranks or fail on all of them, so that nobody waits for a rank that gave
// up.
#pragma once

#include <functional>
#include <string>

#include "comm/group/communicator.hpp"

namespace cadre {

class AllOrNone {
 public:
  // `phase` names the work in the message of a wait that takes too long; it must outlive this object.
  AllOrNone(const Communicator& world, double deadline_seconds, const char* phase)
      : world_(world), deadline_seconds_(deadline_seconds), phase_(phase) {}

  // Collective. Runs `action`; no rank returns before all are done. When it throws on any rank, all ranks throw: that
  // one its own error, the others one that names the first such rank and says why.
  void run(const std::function<void()>& action) const;
  // The same with an action for rank 0 alone.
  void run_on_rank_0(const std::function<void()>& action) const;

  // Collective: the text of rank `root`.
  std::string broadcast(std::string text, int root) const;

  void await(Request request) const;

 private:
  const Communicator& world_;
  double deadline_seconds_;
  const char* phase_;
};

}  // namespace cadre
