// SPDX-License-Identifier: Apache-2.0
// What becomes of operations that are given up.
#include "comm/transport/request.hpp"

#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

namespace cadre {
namespace {

class Never : public PendingOperation {
 public:
  explicit Never(int& abandoned, bool complete = false) : abandoned_(abandoned), complete_(complete) {}
  bool test() override { return complete_; }
  std::string missing() const override { return "all"; }
  void abandon() noexcept override { ++abandoned_; }

 private:
  int& abandoned_;
  bool complete_;
};

// So a communicator of NCCL is aborted when a wait for it has taken too long.
TEST(Request, TellsItsOperationThatItIsGivenUp) {
  int abandoned = 0;
  { const Request request("never", std::make_unique<Never>(abandoned)); }
  EXPECT_EQ(abandoned, 1);
  {
    Request request("never", std::make_unique<Never>(abandoned));
    Request moved = std::move(request);
    EXPECT_EQ(abandoned, 1) << "it goes on elsewhere";
    moved = Request();
  }
  EXPECT_EQ(abandoned, 2);
}

TEST(Request, TellsThoseOfItsPartsThatAreUnderWay) {
  int abandoned = 0;
  int finished = 0;
  std::vector<Request> parts;
  parts.emplace_back("done", std::make_unique<Never>(finished, /*complete=*/true));
  parts.emplace_back("never", std::make_unique<Never>(abandoned));
  parts.emplace_back("never", std::make_unique<Never>(abandoned));
  {
    Request all = all_of(std::move(parts));
    EXPECT_FALSE(all.test());
  }
  EXPECT_EQ(abandoned, 2);
  EXPECT_EQ(finished, 0);
}

}  // namespace
}  // namespace cadre
