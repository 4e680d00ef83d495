// SPDX-License-Identifier: Apache-2.0
#include "launch/leftovers.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <chrono>
#include <fstream>
#include <optional>
#include <set>

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSegmentPrefix = "vader_segment.";

// Of a regular file the sticky bit means nothing to the kernel: here it says that processes of Cadre hold a lock on the
// file for as long as they live.
constexpr mode_t kMark = S_ISVTX;

int open_segment(const fs::path& path) { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK); }

// A job of Cadre had it, and none of its processes lives, in whatever namespace.
bool is_abandoned(const fs::path& path) {
  const int segment = open_segment(path);
  if (segment < 0) return false;
  struct stat status {};
  const bool abandoned = ::fstat(segment, &status) == 0 && S_ISREG(status.st_mode) && (status.st_mode & kMark) != 0 &&
                         ::flock(segment, LOCK_EX | LOCK_NB) == 0;
  ::close(segment);
  return abandoned;
}

bool is_mine(const fs::path& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 && status.st_uid == ::getuid();
}

// Not process 1: it is no rank, and some containers hide it.
bool is_process(const std::string& name) {
  return name != "1" && std::ranges::all_of(name, [](unsigned char c) { return std::isdigit(c) != 0; });
}

// Adds the files in `folder` that a process maps. False when that cannot be seen.
bool add_mapped(const fs::path& process, const fs::path& folder, std::set<fs::path>& mapped) {
  std::ifstream maps(process / "maps");
  if (!maps.is_open()) return errno == ESRCH || errno == ENOENT;  // it has ended
  for (std::string line; std::getline(maps, line);) {
    const size_t path = line.find('/');
    if (path == std::string::npos) continue;
    const fs::path file = line.substr(path);
    if (file.parent_path() == folder) mapped.insert(file);
  }
  return true;
}

// By any process of this user; none when one of them cannot be looked at.
std::optional<std::set<fs::path>> mapped_in(const fs::path& folder) {
  std::set<fs::path> mapped;
  std::error_code error;
  for (fs::directory_iterator entry("/proc", error), end; !error && entry != end; entry.increment(error)) {
    const fs::path process = entry->path();
    if (!is_process(process.filename().string()) || !is_mine(process)) continue;
    if (!add_mapped(process, folder, mapped)) return std::nullopt;
  }
  if (error) return std::nullopt;
  return mapped;
}

std::vector<fs::path> segments_in(const fs::path& folder, double age_seconds) {
  const auto before = fs::file_time_type::clock::now() - std::chrono::duration_cast<fs::file_time_type::duration>(
                                                             std::chrono::duration<double>(age_seconds));
  std::vector<fs::path> segments;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const fs::path path = entry->path();
    if (!path.filename().string().starts_with(kSegmentPrefix) || !is_mine(path)) continue;
    std::error_code gone;
    if (fs::last_write_time(path, gone) <= before && !gone) segments.push_back(path);
  }
  return segments;
}

}  // namespace

void hold_segments(const fs::path& folder) {
  std::set<fs::path> mapped;
  if (!add_mapped("/proc/self", folder, mapped)) return;
  for (const fs::path& path : mapped) {
    if (!path.filename().string().starts_with(kSegmentPrefix)) continue;
    const int segment = open_segment(path);
    if (segment < 0) continue;
    struct stat status {};
    // The lock first: a mark without a lock says that the job is dead. Both end with the process.
    const bool held = ::flock(segment, LOCK_SH | LOCK_NB) == 0 && ::fstat(segment, &status) == 0;
    if (held) static_cast<void>(::fchmod(segment, (status.st_mode & 07777U) | kMark));
    if (!held) ::close(segment);
  }
}

std::vector<std::string> remove_stale_segments(const fs::path& folder, double age_seconds) {
  // First the segments, then who maps them: what is made in between is in neither list.
  const std::vector<fs::path> segments = segments_in(folder, age_seconds);
  if (segments.empty()) return {};
  const auto mapped = mapped_in(folder);
  if (!mapped) return {};
  std::vector<std::string> removed;
  for (const fs::path& segment : segments) {
    std::error_code error;
    if (!mapped->contains(segment) && is_abandoned(segment) && fs::remove(segment, error))
      removed.push_back(segment.filename().string());
  }
  return removed;
}

}  // namespace cadre
