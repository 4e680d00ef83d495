// SPDX-License-Identifier: Apache-2.0
// All-or-nothing work: ranks all-gather success or error and branch alike.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/group/communicator.hpp"

namespace cadre {

// Why work failed, on the first rank on which it did. The same on all ranks.
struct Failure {
  int rank = 0;
  ErrorKind kind = ErrorKind::environment;
  std::string text;
  std::string hint;

  // "saving a checkpoint failed on rank 1: cannot ..."
  Error error(const std::string& what) const;
};

// The result of a part that is done, for all ranks; the text is shorter than 2 KiB.
struct Account {
  std::string text = {};
  std::array<uint64_t, 4> numbers = {};
};
using AccountOrError = std::variant<Account, Error>;

// Runs `work`; whatever it throws is its result.
AccountOrError part_of(const std::function<Account()>& work);

// The accounts on their way to all ranks. Move-only.
class Agreement {
 public:
  // Collective over `world`; does not wait.
  Agreement(const Communicator& world, const AccountOrError& mine);

  Request& request() { return records_.request(); }
  // Only once the request is complete: none when all parts are done, and then what each rank told.
  std::optional<Failure> failure() const;
  Account account_of(int rank) const;

 private:
  struct Record;
  static Record record_of(const AccountOrError& part);

  Pending<std::vector<Record>> records_;  // of all ranks
};

// Collective: runs `action`; no rank returns before all are done. None when it threw on no rank. `phase` names the work in
// the message of a wait that takes too long. Where `action` itself timed out and others do not come within seconds, throws
// what `action` threw.
std::optional<Failure> attempt_together(const Communicator& world, double deadline_seconds, const char* phase,
                                        const std::function<void()>& action);

}  // namespace cadre
