// SPDX-License-Identifier: Apache-2.0
#include "comm/group/agreement.hpp"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "comm/job/wait.hpp"

namespace cadre {
namespace {

// For ranks whose deadline began a little later.
constexpr double kSecondsAfterTimeout = 2.0;

// A text of at most N - 1 bytes. Longer ones are cut.
template <size_t N>
struct ShortText {
  std::array<char, N> bytes = {};

  void set(std::string_view text) { text.copy(bytes.data(), N - 1); }
  std::string get() const { return bytes.data(); }
};

}  // namespace

struct Agreement::Record {
  int32_t done = 0;
  ErrorKind kind = ErrorKind::environment;
  ShortText<2048> text;
  ShortText<256> hint;
  std::array<uint64_t, 4> numbers = {};
};

Agreement::Record Agreement::record_of(const AccountOrError& part) {
  Record record;
  if (const auto* account = std::get_if<Account>(&part)) {
    if (account->text.size() >= sizeof record.text) {
      return record_of(Error(ErrorKind::input, fmt::format("a path of {} bytes, allowed: below {}",
                                                           account->text.size(), sizeof record.text)));
    }
    record.done = 1;
    record.text.set(account->text);
    record.numbers = account->numbers;
    return record;
  }
  const Error& error = std::get<Error>(part);
  record.kind = error.kind();
  record.text.set(error.text());
  record.hint.set(error.hint());
  return record;
}

Error Failure::error(const std::string& what) const {
  return {kind, fmt::format("{} failed on rank {}: {}", what, rank, text), hint};
}

AccountOrError part_of(const std::function<Account()>& work) {
  try {
    return work();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::environment, error.what());
  }
}

Agreement::Agreement(const Communicator& world, const AccountOrError& mine)
    : records_(world.all_gather(record_of(mine))) {}

std::optional<Failure> Agreement::failure() const {
  const std::vector<Record>& all = records_.value();
  const auto failed = std::ranges::find(all, 0, &Record::done);
  if (failed == all.end()) return std::nullopt;
  return Failure{static_cast<int>(failed - all.begin()), failed->kind, failed->text.get(), failed->hint.get()};
}

Account Agreement::account_of(int rank) const {
  const Record& record = records_.value()[static_cast<size_t>(rank)];
  return {record.text.get(), record.numbers};
}

std::optional<Failure> attempt_together(const Communicator& world, double deadline_seconds, const char* phase,
                                        const std::function<void()>& action) {
  const auto work = [&] {
    action();
    return Account{};
  };
  const AccountOrError mine = part_of(work);
  Agreement agreement(world, mine);
  const auto* const error = std::get_if<Error>(&mine);
  if (error == nullptr || error->kind() != ErrorKind::timeout) {
    wait(agreement.request(), deadline_seconds, {.phase = phase});
    return agreement.failure();
  }
  // Ranks that were late in `action` are late here too: nested attempts end together, not a deadline each.
  try {
    wait(agreement.request(), std::min(deadline_seconds, kSecondsAfterTimeout), {.phase = phase});
  } catch (const Error& late) {
    if (late.kind() == ErrorKind::timeout) throw *error;
    throw;
  }
  return agreement.failure();
}

}  // namespace cadre
