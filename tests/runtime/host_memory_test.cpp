// SPDX-License-Identifier: Apache-2.0
// Limits of memory: where they are found in the files of the kernel, and which ranks share one.
#include "runtime/train/host_memory.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/files.hpp"
#include "tests/support/ranks.hpp"

namespace cadre::host_memory_test {
namespace {

using test::TemporaryDirectory;
using testing::HasSubstr;

constexpr size_t kMiB = size_t{1} << 20;

void write(const TemporaryDirectory& root, const std::string& path, const std::string& text) {
  const std::filesystem::path file = root.path() / path;
  std::filesystem::create_directories(file.parent_path());
  test::write_file(file, text);
}

// "what: MiB" of each limit below the physical one.
std::vector<std::string> limits_of(const TemporaryDirectory& root) {
  std::vector<std::string> found;
  const std::vector<MemoryLimit> limits = memory_limits(root.path());
  EXPECT_EQ(limits.front().what, "this host has");
  for (size_t i = 1; i < limits.size(); ++i) {
    EXPECT_NE(limits[i].id, limits[i - 1].id);
    found.push_back(fmt::format("{}: {}", limits[i].what, limits[i].bytes / kMiB));
  }
  return found;
}

// As Slurm nests them: job, step, task; only some have a limit.
TEST(MemoryLimits, version_2_from_the_inside_out) {
  const TemporaryDirectory root;
  write(root, "proc/self/cgroup", "0::/slurm/job_7/step_0/task_1\n");
  write(root, "proc/self/mountinfo",
        "22 1 0:20 / /proc rw - proc proc rw\n"
        "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup2 cgroup2 rw,nsdelegate\n");
  write(root, "sys/fs/cgroup/slurm/job_7/memory.max", "209715200\n");
  write(root, "sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
  write(root, "sys/fs/cgroup/slurm/job_7/step_0/task_1/memory.max", "104857600\n");
  EXPECT_EQ(limits_of(root),
            (std::vector<std::string>{"memory.max of /sys/fs/cgroup/slurm/job_7/step_0/task_1 allows: 100",
                                      "memory.max of /sys/fs/cgroup/slurm/job_7 allows: 200"}));
}

TEST(MemoryLimits, version_1_beside_others_and_a_mount_point_with_a_blank) {
  const TemporaryDirectory root;
  write(root, "proc/self/cgroup", "9:name=systemd:/memory\n4:cpu,memory:/job\n3:cpuset:/memory\n0::/\n");
  write(root, "proc/self/mountinfo",
        "31 23 0:28 / /cg\\040roup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "32 23 0:29 / /cg\\040roup/memory rw - cgroup cgroup rw,cpu,memory\n"
        "33 23 0:30 / /cg\\040roup/unified rw - cgroup2 cgroup2 rw\n");
  write(root, "cg roup/memory/job/memory.limit_in_bytes", "157286400\n");
  write(root, "cg roup/memory/memory.limit_in_bytes", "9223372036854771712\n");  // none
  write(root, "cg roup/cpuset/memory/memory.limit_in_bytes", "1\n");             // no memory there
  EXPECT_EQ(limits_of(root), (std::vector<std::string>{"memory.limit_in_bytes of /cg roup/memory/job allows: 150"}));
}

// A container may see its group by its name outside, mounted as the top; or a group that is not mounted at all.
TEST(MemoryLimits, in_containers) {
  for (const char* group : {"/docker/abc", "/", "/../docker/other"}) {
    const TemporaryDirectory root;
    write(root, "proc/self/cgroup", fmt::format("0::{}\n", group));
    write(root, "proc/self/mountinfo", "31 23 0:28 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n");
    write(root, "sys/fs/cgroup/memory.max", "52428800\n");
    EXPECT_EQ(limits_of(root), (std::vector<std::string>{"memory.max of /sys/fs/cgroup allows: 50"})) << group;
  }
  const TemporaryDirectory nothing;
  EXPECT_TRUE(limits_of(nothing).empty());
}

// Ranks 0 and 1 share a group, ranks 2 and 3 have one each.
TEST(HostMemory, the_ranks_that_share_a_limit_count_together) {
  test::on_ranks(
      [](Communicator& world) {
        const Topology topology = Topology::uniform(1, 4);
        const auto limits_with = [&](size_t mib) {
          const uint64_t id = world.rank() < 2 ? 77 : 80 + static_cast<uint64_t>(world.rank());
          return std::vector<MemoryLimit>{{1000 * kMiB, "this host has", 1},
                                          {mib * kMiB, "memory.max of /job allows", id}};
        };
        const size_t wanted = 100 * kMiB;
        EXPECT_EQ(check_host_memory(world, topology, wanted, limits_with(250)),
                  world.rank() < 2 ? "memory.max of /job allows 250 MiB, of which 2 ranks take 200 MiB"
                                   : "this host has 1000 MiB, of which 4 ranks take 400 MiB");
        if (world.rank() < 2) {
          EXPECT_THAT(test::error_of([&] { check_host_memory(world, topology, wanted, limits_with(199)); }),
                      HasSubstr("want 200 MiB of memory, memory.max of /job allows 199 MiB"));
        } else {
          check_host_memory(world, topology, wanted, limits_with(199));
        }
        EXPECT_THAT(test::error_of([&] {
                      check_host_memory(world, topology, 251 * kMiB, {{1000 * kMiB, "this host has", 1}});
                    }),
                    HasSubstr("4 ranks of host0 want 1004 MiB of memory, this host has 1000 MiB"));
      },
      {4});
}

}  // namespace
}  // namespace cadre::host_memory_test
