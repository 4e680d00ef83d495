// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/request.hpp"

#include <mutex>
#include <utility>

namespace cadre {
namespace {

class AllOf : public PendingOperation {
 public:
  explicit AllOf(std::vector<Request> requests) : requests_(std::move(requests)) {}

  bool test() override {
    bool done = true;
    for (Request& request : requests_) done = request.test() && done;
    return done;
  }
  std::string missing() const override {
    std::string text;
    for (const Request& request : requests_) {
      if (!request.done()) text += (text.empty() ? "" : ", ") + request.missing();
    }
    return text;
  }
  void abandon() noexcept override { requests_.clear(); }  // each is abandoned for itself

 private:
  std::vector<Request> requests_;
};

}  // namespace

Request::Request(std::string what, std::unique_ptr<PendingOperation> operation, int64_t bytes)
    : what_(std::move(what)), operation_(std::move(operation)) {
  if (const TraceRecorder* recorder = trace_recorder()) {
    flight_ = {TraceKind::flight, recorder->activity().at, trace_clock_ns(), 0, bytes};
  }
}

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) {
    abandon();
    what_ = std::move(other.what_);
    operation_ = std::move(other.operation_);
    owners_ = std::move(other.owners_);
    flight_ = other.flight_;
  }
  return *this;
}

Request::~Request() { abandon(); }

bool Request::test() {
  if (operation_ == nullptr) return true;
  if (!operation_->test()) return false;
  operation_.reset();
  owners_.clear();
  if (TraceRecorder* recorder = trace_recorder(); recorder != nullptr && flight_.begin_ns != 0) {
    flight_.end_ns = trace_clock_ns();
    recorder->add(flight_);
  }
  return true;
}

void Request::abandon() noexcept {
  if (operation_ == nullptr) return;
  operation_->abandon();
  // Kept to the end of the process. Where there is no memory for that, the process ends here, as an abandoned job does.
  static std::mutex mutex;
  static auto* const abandoned = new std::vector<Request>;
  const std::lock_guard lock(mutex);
  abandoned->emplace_back(std::move(*this));
}

Request all_of(std::vector<Request> requests) {
  std::string what;
  for (const Request& request : requests) what += (what.empty() ? "" : " and ") + request.what();
  Request all(std::move(what), std::make_unique<AllOf>(std::move(requests)));
  all.flight_ = {};  // each of them shows for itself
  return all;
}

}  // namespace cadre
