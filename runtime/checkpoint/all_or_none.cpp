// SPDX-License-Identifier: Apache-2.0
#include "runtime/checkpoint/all_or_none.hpp"

#include <optional>
#include <utility>

#include "comm/base/check.hpp"
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

void AllOrNone::run(const std::function<void()>& action) const {
  std::optional<Error> error = error_of(action);
  int32_t first_failed = error ? world_.rank() : world_.size();
  await(world_.all_reduce(std::span(&first_failed, 1), ReduceOp::min));
  if (first_failed == world_.size()) return;
  const std::string text = broadcast(error ? error->text() : "", first_failed);
  if (!error) {
    error.emplace(ErrorKind::environment, fmt::format("{} failed on rank {}: {}", phase_, first_failed, text),
                  fmt::format("see the message of rank {}", first_failed));
  }
  throw Error(*error);
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
