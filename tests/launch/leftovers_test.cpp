// SPDX-License-Identifier: Apache-2.0
#include "launch/leftovers.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/checkpoint/file.hpp"
#include "tests/support/files.hpp"

namespace cadre::leftovers_test {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

// As hold_segments leaves it when its process is dead.
void mark(const fs::path& path) { ASSERT_EQ(::chmod(path.c_str(), 0600 | S_ISVTX), 0); }

// A process whose memory cannot be seen, in another namespace say, still holds its lock.
TEST(Leftovers, segments_of_a_process_that_lives_elsewhere_stay) {
  const test::TemporaryDirectory folder;
  const fs::path segment = folder / "vader_segment.host.0.1.0";
  test::write_file(segment, "segment");
  fs::last_write_time(segment, fs::file_time_type::clock::now() - std::chrono::hours(1));
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names()) << "no job of Cadre says that it was its own";
  mark(segment);
  const int held = ::open(segment.c_str(), O_RDONLY);
  ASSERT_EQ(::flock(held, LOCK_SH), 0);
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names());
  ::close(held);
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names{"vader_segment.host.0.1.0"});
}

TEST(Leftovers, what_a_process_maps_it_marks_and_locks) {
  const test::TemporaryDirectory folder;
  for (const char* name : {"vader_segment.mapped", "vader_segment.other", "mapped"}) {
    test::write_file(folder / name, "segment");
    fs::last_write_time(folder / name, fs::file_time_type::clock::now() - std::chrono::hours(1));
  }
  {
    const MappedFile segment(folder / "vader_segment.mapped");
    const MappedFile other(folder / "mapped");
    hold_segments(folder.path());
  }
  const int again = ::open((folder / "vader_segment.mapped").c_str(), O_RDONLY);
  EXPECT_NE(::flock(again, LOCK_EX | LOCK_NB), 0) << "no lock";
  ::close(again);
  struct stat status {};
  for (const auto& [name, marked] :
       {std::pair("vader_segment.mapped", true), std::pair("vader_segment.other", false), std::pair("mapped", false)}) {
    ASSERT_EQ(::stat((folder / name).c_str(), &status), 0);
    EXPECT_EQ((status.st_mode & S_ISVTX) != 0, marked) << name;
  }
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names()) << "this process lives";
}

TEST(Leftovers, only_old_segments_that_nobody_maps_are_removed) {
  const test::TemporaryDirectory folder;
  for (const char* name :
       {"vader_segment.host.0.1.0", "vader_segment.host.0.2.0", "vader_segment.host.0.2.1", "other"}) {
    test::write_file(folder / name, "segment");
    mark(folder / name);
  }
  fs::last_write_time(folder / "vader_segment.host.0.2.1", fs::file_time_type::clock::now());
  for (const char* old : {"vader_segment.host.0.1.0", "vader_segment.host.0.2.0", "other"}) {
    fs::last_write_time(folder / old, fs::file_time_type::clock::now() - std::chrono::hours(1));
  }
  std::optional<MappedFile> used(folder / "vader_segment.host.0.1.0");
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names{"vader_segment.host.0.2.0"});
  EXPECT_TRUE(fs::exists(folder / "other"));
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names());
  used.reset();
  EXPECT_EQ(remove_stale_segments(folder.path(), 600.0), Names{"vader_segment.host.0.1.0"});
  EXPECT_TRUE(fs::exists(folder / "vader_segment.host.0.2.1")) << "its job may be about to map it";
}

}  // namespace
}  // namespace cadre::leftovers_test
