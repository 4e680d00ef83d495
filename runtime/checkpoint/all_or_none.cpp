// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/all_or_none.hpp"

#include <utility>

#include "comm/transport/wait.hpp"

namespace cadre {
namespace {

std::optional<Error> error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(ErrorKind::environment, error.what());
  }
  return std::nullopt;
}

}  // namespace

std::optional<Failure> AllOrNone::attempt(const std::function<void()>& action) const { return agree(error_of(action)); }

void AllOrNone::run(const std::function<void()>& action) const {
  const std::optional<Error> error = error_of(action);
  const std::optional<Failure> failure = agree(error);
  if (!failure) return;
  if (error) throw Error(*error);
  throw Error(failure->kind, fmt::format("{} failed on rank {}: {}", phase_, failure->rank, failure->text),
              fmt::format("see the message of rank {}", failure->rank));
}

std::optional<Failure> AllOrNone::agree(const std::optional<Error>& mine) const {
  int32_t first_failed = mine ? world_.rank() : world_.size();
  await(world_.all_reduce(std::span(&first_failed, 1), ReduceOp::min));
  if (first_failed == world_.size()) return std::nullopt;
  auto kind = static_cast<int32_t>(mine ? mine->kind() : ErrorKind::internal);
  await(world_.broadcast(std::span(&kind, 1), first_failed));
  return Failure{first_failed, static_cast<ErrorKind>(kind), broadcast(mine ? mine->text() : "", first_failed)};
}

void AllOrNone::run_on_rank_0(const std::function<void()>& action) const {
  run([&] {
    if (world_.rank() == 0) action();
  });
}

std::string AllOrNone::broadcast(std::string text, int root) const {
  auto length = static_cast<int64_t>(text.size());
  await(world_.broadcast(std::span(&length, 1), root));
  text.resize(static_cast<size_t>(length));
  await(world_.broadcast(std::span(text), root));
  return text;
}

void AllOrNone::await(Request request) const { wait(request, deadline_seconds_, {.phase = phase_}); }

}  // namespace cadre
