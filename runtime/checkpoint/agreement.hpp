// SPDX-License-Identifier: Apache-2.0
// Work that is either done on all ranks or failed on all of them, so that nobody waits for a rank that gave up: each tells
// all others how its part went.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>

#include "comm/base/buffer.hpp"
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

// What a rank whose part is done has to tell the others of it; the text is shorter than 2 KiB.
struct Account {
  std::string text = {};
  std::array<uint64_t, 4> numbers = {};
};
using Part = std::variant<Account, Error>;

// Runs `work`; whatever it throws is its result.
Part part_of(const std::function<Account()>& work);

// The accounts on their way to all ranks. Move-only. Given up before the end, it leaves its memory to the transport.
class Agreement {
 public:
  // Collective over `world`; does not wait.
  Agreement(const Communicator& world, const Part& mine);
  ~Agreement();
  Agreement(Agreement&&) noexcept = default;
  Agreement& operator=(Agreement&&) = delete;

  Request& request() { return request_; }
  // Only once the request is complete: none when all parts are done, and then what each rank told.
  std::optional<Failure> failure() const;
  Account account_of(int rank) const;

 private:
  int num_ranks_;
  Buffer records_;  // one of this rank, then one of each
  Request request_;
};

// Collective: runs `action`; no rank returns before all are done. None when it threw on no rank. `phase` names the work in
// the message of a wait that takes too long.
std::optional<Failure> attempt_together(const Communicator& world, double deadline_seconds, const char* phase,
                                        const std::function<void()>& action);

}  // namespace cadre
