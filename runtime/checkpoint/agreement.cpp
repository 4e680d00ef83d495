// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/agreement.hpp"

#include <algorithm>
#include <span>
#include <string_view>
#include <utility>

#include "comm/transport/wait.hpp"

namespace cadre {
namespace {

// A text of at most N - 1 bytes. Longer ones are cut.
template <size_t N>
struct ShortText {
  std::array<char, N> bytes = {};

  void set(std::string_view text) { text.copy(bytes.data(), N - 1); }
  std::string get() const { return bytes.data(); }
};

struct Record {
  int32_t done = 0;
  ErrorKind kind = ErrorKind::environment;
  ShortText<2048> text;
  ShortText<256> hint;
  std::array<uint64_t, 4> numbers = {};
};

Record record_of(const Error& error) {
  Record record;
  record.kind = error.kind();
  record.text.set(error.text());
  record.hint.set(error.hint());
  return record;
}

Record record_of(const Account& account) {
  Record record;
  if (account.text.size() >= sizeof record.text) {
    return record_of(Error(ErrorKind::input, fmt::format("a path of {} bytes, allowed: below {}", account.text.size(),
                                                         sizeof record.text)));
  }
  record.done = 1;
  record.text.set(account.text);
  record.numbers = account.numbers;
  return record;
}

}  // namespace

Error Failure::error(const std::string& what) const {
  return {kind, fmt::format("{} failed on rank {}: {}", what, rank, text), hint};
}

Part part_of(const std::function<Account()>& work) {
  try {
    return work();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::environment, error.what());
  }
}

Agreement::Agreement(const Communicator& world, const Part& mine)
    : num_ranks_(world.size()), records_((static_cast<size_t>(world.size()) + 1) * sizeof(Record)) {
  auto* records = records_.as<Record>();
  records[0] = std::visit([](const auto& part) { return record_of(part); }, mine);
  request_ = world.all_gather(std::span<const Record>(records, 1),
                              std::span<Record>(records + 1, static_cast<size_t>(num_ranks_)));
}

Agreement::~Agreement() {
  if (!request_.done()) request_.own(std::move(records_));
}

std::optional<Failure> Agreement::failure() const {
  CADRE_ASSERT(request_.done());
  const auto* all = records_.as<Record>() + 1;
  const auto* failed = std::find_if(all, all + num_ranks_, [](const Record& record) { return record.done == 0; });
  if (failed == all + num_ranks_) return std::nullopt;
  return Failure{static_cast<int>(failed - all), failed->kind, failed->text.get(), failed->hint.get()};
}

Account Agreement::account_of(int rank) const {
  CADRE_ASSERT(request_.done());
  const Record& record = records_.as<Record>()[rank + 1];
  return {record.text.get(), record.numbers};
}

std::optional<Failure> attempt_together(const Communicator& world, double deadline_seconds, const char* phase,
                                        const std::function<void()>& action) {
  const auto work = [&] {
    action();
    return Account{};
  };
  Agreement agreement(world, part_of(work));
  wait(agreement.request(), deadline_seconds, {.phase = phase});
  return agreement.failure();
}

}  // namespace cadre
