// SPDX-License-Identifier: Apache-2.0
// Steps of a save that either succeed on all ranks or fail on all of them, so that nobody waits for a rank that gave
// up.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "comm/base/check.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// Why a step failed, on the first rank on which it did. The same on all ranks.
struct Failure {
  int rank = 0;
  ErrorKind kind = ErrorKind::environment;
  std::string text;
};

class AllOrNone {
 public:
  // `phase` names the work in the message of a wait that takes too long; it must outlive this object.
  AllOrNone(const Communicator& world, double deadline_seconds, const char* phase)
      : world_(world), deadline_seconds_(deadline_seconds), phase_(phase) {}

  // Collective. Runs `action`; no rank returns before all are done. Nothing when it threw on no rank.
  std::optional<Failure> attempt(const std::function<void()>& action) const;
  // The same, but a failure is thrown: by that rank as its own error, by the others as one that names it and says why.
  void run(const std::function<void()>& action) const;
  // The same with an action for rank 0 alone.
  void run_on_rank_0(const std::function<void()>& action) const;

  // Collective: the text of rank `root`.
  std::string broadcast(std::string text, int root) const;

  void await(Request request) const;

 private:
  std::optional<Failure> agree(const std::optional<Error>& mine) const;

  const Communicator& world_;
  double deadline_seconds_;
  const char* phase_;
};

}  // namespace cadre
