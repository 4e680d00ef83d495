// SPDX-License-Identifier: Apache-2.0
// What becomes of operations that are given up.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "comm/job/job_context.hpp"

namespace cadre::request_test {
namespace {

class Never : public PendingOperation {
 public:
  explicit Never(int& abandoned, bool complete = false) : abandoned_(abandoned), complete_(complete) {}
  bool test() override { return complete_; }
  std::string missing() const override { return "all"; }
  void abandon() noexcept override { ++abandoned_; }
  bool outlives_job() const override { return false; }

 private:
  int& abandoned_;
  bool complete_;
};

// So a communicator of NCCL is aborted when a wait for it has taken too long.
TEST(Request, TellsItsOperationThatItIsGivenUp) {
  JobContext job;
  int abandoned = 0;
  { const Request request(job, "never", std::make_unique<Never>(abandoned)); }
  EXPECT_EQ(abandoned, 1);
  {
    Request request(job, "never", std::make_unique<Never>(abandoned));
    Request moved = std::move(request);
    EXPECT_EQ(abandoned, 1) << "it goes on elsewhere";
    moved = Request();
  }
  EXPECT_EQ(abandoned, 2);
}

TEST(Request, TellsThoseOfItsPartsThatAreUnderWay) {
  JobContext job;
  int abandoned = 0;
  int finished = 0;
  std::vector<Request> parts;
  parts.emplace_back(job, "done", std::make_unique<Never>(finished, /*complete=*/true));
  parts.emplace_back(job, "never", std::make_unique<Never>(abandoned));
  parts.emplace_back(job, "never", std::make_unique<Never>(abandoned));
  {
    Request all = all_of(std::move(parts));
    EXPECT_FALSE(all.test());
  }
  EXPECT_EQ(abandoned, 2);
  EXPECT_EQ(finished, 0);
}

// What a late peer writes into stays there as long as the job; a device's operation, which is of no job, ends at once.
TEST(Request, LeavesItsMemoryToTheJobWhenItIsGivenUp) {
  int abandoned = 0;
  const auto memory = std::make_shared<int>(7);
  {
    JobContext job;
    {
      Request request(job, "never", std::make_unique<Never>(abandoned));
      request.keep(memory);
    }
    EXPECT_EQ(memory.use_count(), 2);
  }
  EXPECT_EQ(memory.use_count(), 1);
  {
    Request request("kernels", std::make_unique<Never>(abandoned));
    request.keep(memory);
  }
  EXPECT_EQ(memory.use_count(), 1);
}

}  // namespace
}  // namespace cadre::request_test
