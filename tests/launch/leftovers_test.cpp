// SPDX-License-Identifier: Apache-2.0
#include "launch/leftovers.hpp"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/file.hpp"
#include "tests/support/files.hpp"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

TEST(Leftovers, only_old_segments_that_nobody_maps_are_removed) {
  const test::TemporaryDirectory folder;
  for (const char* name :
       {"vader_segment.host.0.1.0", "vader_segment.host.0.2.0", "vader_segment.host.0.2.1", "other"}) {
    test::write_file(folder / name, "segment");
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
}  // namespace cadre
