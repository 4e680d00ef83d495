// SPDX-License-Identifier: Apache-2.0
#include "comm/job/request.hpp"

#include <utility>

#include "comm/job/job_context.hpp"

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
  bool outlives_job() const override { return false; }

 private:
  std::vector<Request> requests_;
};

}  // namespace

Request::Request(std::string what, std::unique_ptr<PendingOperation> operation)
    : what_(std::move(what)), operation_(std::move(operation)) {}

Request::Request(JobContext& job, std::string what, std::unique_ptr<PendingOperation> operation, int64_t bytes)
    : job_(&job), what_(std::move(what)), operation_(std::move(operation)) {
  if (const TraceRecorder* recorder = job.tracer().recorder()) {
    flight_ = {TraceKind::flight, recorder->activity().at, trace_clock_ns(), 0, bytes};
  }
}

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) {
    abandon();
    job_ = other.job_;
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
  if (flight_.begin_ns == 0) return true;
  if (TraceRecorder* recorder = job_->tracer().recorder()) {
    flight_.end_ns = trace_clock_ns();
    recorder->add(flight_);
  }
  return true;
}

void Request::abandon() noexcept {
  if (operation_ == nullptr) return;
  operation_->abandon();
  if (job_ == nullptr) return operation_.reset();
  job_->keep_abandoned({std::move(operation_), std::move(owners_)});
}

Request all_of(std::vector<Request> requests) {
  Request all;  // without a flight of its own: each of them shows for itself
  for (const Request& request : requests) {
    all.what_ += (all.what_.empty() ? "" : " and ") + request.what();
    if (all.job_ == nullptr) all.job_ = request.job();
  }
  all.operation_ = std::make_unique<AllOf>(std::move(requests));
  return all;
}

}  // namespace cadre
