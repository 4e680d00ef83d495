// SPDX-License-Identifier: Apache-2.0
// The lock of a run's folder: refused while its holder lives, free once it is gone, however it went and whatever the file
// system can do.
#include "runtime/checkpoint/run_lock.hpp"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "tests/support/files.hpp"

namespace cadre::run_lock_test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using test::error_of;
using test::read_file;
using test::TemporaryDirectory;
using test::write_file;
using testing::AllOf;
using testing::HasSubstr;

class RunLockTest : public testing::Test {
 protected:
  // Runs `body` in a process of its own, until it is killed; returns once it has written to the pipe.
  pid_t in_child(const std::function<void()>& body) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        body();
      } catch (...) {
        ::_exit(1);
      }
      static_cast<void>(::write(ends[1], "x", 1));
      for (;;) ::pause();
    }
    char c = 0;
    ::close(ends[1]);
    EXPECT_EQ(::read(ends[0], &c, 1), 1) << "the child failed";
    ::close(ends[0]);
    return child;
  }
  static void kill_and_wait(pid_t child) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  pid_t child_with_lock() {
    return in_child([this] { static_cast<void>(new RunLock(out_, "child", say_)); });
  }
  // RUNNING as `change` makes it from that of this process.
  void leave(const std::function<void(nlohmann::json&)>& change) {
    const LockHolder me = this_process("other");
    nlohmann::json json = {{"pid", me.pid},
                           {"parent", me.parent},
                           {"start_time", me.start_time},
                           {"boot", "another"},
                           {"pid_space", me.pid_space},
                           {"host", "far"},
                           {"job", "Slurm job 7"},
                           {"series", ""},
                           {"run", "other"},
                           {"beat", 1}};
    change(json);
    write_file(out_ / "RUNNING", json.dump() + "\n");
  }
  void take() { RunLock(out_, "mine", say_, times_); }

  TemporaryDirectory directory_;
  fs::path out_ = directory_ / "out";
  std::string said_;
  RunLock::Say say_ = [this](const std::string& line) { said_ += line + "\n"; };
  RunLockTimes times_ = {.beat = 20ms, .watch = 1s, .ending = 500ms, .predecessor = 500ms};
};

TEST_F(RunLockTest, LeavesNothing) {
  take();
  EXPECT_TRUE(fs::is_empty(out_));
  take();
  EXPECT_EQ(said_, "");
}

TEST_F(RunLockTest, ASecondRunIsRefused) {
  const pid_t child = child_with_lock();
  const std::string before = read_file(out_ / "RUNNING");
  EXPECT_THAT(
      error_of([&] { take(); }),
      AllOf(HasSubstr(fmt::format("another run trains in this folder: pid {} on ", child)), HasSubstr("out=PATH")));
  EXPECT_EQ(read_file(out_ / "RUNNING"), before);
  kill_and_wait(child);
  take();
  EXPECT_FALSE(fs::exists(out_ / "RUNNING"));
}

TEST_F(RunLockTest, ARunOfTheSameSeriesWaitsForTheOneBefore) {
  ::setenv("CADRE_SERIES", "a supervisor", 1);
  const pid_t child = child_with_lock();
  EXPECT_THAT(error_of([&] { take(); }), HasSubstr("another run trains"));
  EXPECT_THAT(said_, HasSubstr(fmt::format("waiting for pid {} ", child)));
  times_.predecessor = 60s;
  std::thread killer([&] {
    std::this_thread::sleep_for(300ms);
    kill_and_wait(child);
  });
  take();
  killer.join();
  ::unsetenv("CADRE_SERIES");
}

// What a copy of the folder, a reboot, or a host that is gone leaves.
TEST_F(RunLockTest, AHolderWithoutHeartbeatIsGone) {
  fs::create_directories(out_);
  leave([](nlohmann::json&) {});
  take();
  EXPECT_THAT(said_, AllOf(HasSubstr("was left by pid"), HasSubstr("on far (Slurm job 7)"), HasSubstr("watching")));
  for (const char* text : {"", "{", "{}", "[1]", "{\"pid\":\"x\"}", "\xff"}) {
    write_file(out_ / "RUNNING", text);
    take();
  }
}

// A restart of `supervise` on another host, where the lock of the job before is free.
TEST_F(RunLockTest, ARunOfTheSameSeriesNeedsNoHeartbeatWhereTheLockIsFree) {
  fs::create_directories(out_);
  leave([](nlohmann::json& json) { json["series"] = "a supervisor"; });
  ::setenv("CADRE_SERIES", "a supervisor", 1);
  take();
  ::unsetenv("CADRE_SERIES");
  EXPECT_EQ(said_, "");
}

TEST_F(RunLockTest, AHeartbeatFromAnotherHostIsARun) {
  fs::create_directories(out_);
  leave([](nlohmann::json&) {});
  std::thread other([&] {
    std::this_thread::sleep_for(300ms);
    leave([](nlohmann::json& json) { json["beat"] = 2; });
  });
  EXPECT_THAT(error_of([&] { take(); }), HasSubstr("another run trains in this folder: pid"));
  other.join();
}

// A process id that is used again is no holder, nor is the same machine once the lock is free.
TEST_F(RunLockTest, OnTheSameMachineTheLockDecides) {
  fs::create_directories(out_);
  leave([](nlohmann::json& json) { json["boot"] = this_process("").boot; });
  take();
  EXPECT_EQ(said_, "");
}

TEST_F(RunLockTest, WritesAHeartbeat) {
  const RunLock lock(out_, "mine", say_, times_);
  const auto beat = [&] { return nlohmann::json::parse(read_file(out_ / "RUNNING")).at("beat").get<int>(); };
  const int before = beat();
  for (int i = 0; i < 500 && beat() == before; ++i) std::this_thread::sleep_for(10ms);
  EXPECT_GT(beat(), before);
}

TEST_F(RunLockTest, ALinkIsNotFollowed) {
  fs::create_directories(out_);
  write_file(directory_ / "victim", "precious");
  fs::create_symlink(directory_ / "victim", out_ / "RUNNING");
  EXPECT_THAT(error_of([&] { take(); }), HasSubstr("cannot open"));
  EXPECT_EQ(read_file(directory_ / "victim"), "precious");
}

}  // namespace
}  // namespace cadre::run_lock_test
