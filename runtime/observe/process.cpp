// SPDX-License-Identifier: Apache-2.0
#include "runtime/observe/process.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>
#include <string>

#include "comm/progress/progress_thread.hpp"

namespace cadre {
namespace {

// The value of a line "VmHWM:   12345 kB" of a file of /proc/self; 0 where there is none.
size_t bytes_in_proc(const char* file, const std::string& key) {
  std::ifstream lines(fmt::format("/proc/self/{}", file));
  for (std::string word; lines >> word;) {
    size_t kilobytes = 0;
    if (word == key + ":" && lines >> kilobytes) return kilobytes * 1024;
  }
  return 0;
}

namespace fs = std::filesystem;

constexpr uint64_t kPhysicalMemory = 1;

// A mounted hierarchy of control groups that counts memory.
struct Hierarchy {
  int version = 0;
  std::string top;     // the group that lies at the mount point
  std::string folder;  // the mount point
};

// Of mountinfo: "\040" is a blank.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned code = 0;
    const char* digits = text.data() + i + 1;
    if (text[i] == '\\' && i + 3 < text.size() && std::from_chars(digits, digits + 3, code, 8).ptr == digits + 3) {
      plain += static_cast<char>(code);
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

bool lists(const std::string& names, const std::string& name) {
  std::istringstream parts(names);
  for (std::string part; std::getline(parts, part, ',');) {
    if (part == name) return true;
  }
  return false;
}

// proc(5): id, parent, device, root, mount point, options, any number of fields, "-", type, source, options.
std::vector<Hierarchy> hierarchies(const fs::path& root) {
  std::vector<Hierarchy> found;
  std::ifstream mounts(root / "proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string skipped, top, folder, type, source, options;
    words >> skipped >> skipped >> skipped >> top >> folder;
    while (words >> skipped && skipped != "-") continue;
    words >> type >> source >> options;
    const int version = type == "cgroup2" ? 2 : (type == "cgroup" && lists(options, "memory") ? 1 : 0);
    if (version > 0) found.push_back({version, unescaped(top), unescaped(folder)});
  }
  return found;
}

// The group of this process in a hierarchy: a line "4:memory:/job/step" of version 1, "0::/job/step" of version 2.
std::optional<std::string> group_in(int version, const fs::path& root) {
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (version == 2 ? controllers.empty() : lists(controllers, "memory")) return line.substr(second + 1);
  }
  return std::nullopt;
}

// Where the group lies below the mount point; empty for the mount point itself, also where the group lies outside of what
// is mounted, as in some containers.
std::string below_mount(const std::string& group, const std::string& top) {
  const std::string prefix = top == "/" ? "" : top;
  if (!group.starts_with(prefix) || group.find("/..") != std::string::npos) return "";
  std::string rest = group.substr(prefix.size());
  if (!rest.empty() && rest.front() != '/') return "";  // another group whose name begins alike
  return rest == "/" ? "" : rest;
}

// The number in the file; nothing for "max" or where there is no such file.
std::optional<size_t> number_in_file(const fs::path& path) {
  std::ifstream file(path);
  size_t number = 0;
  if (file >> number) return number;
  return std::nullopt;
}

uint64_t id_of(const fs::path& folder) {
  struct stat status {};
  if (::stat(folder.c_str(), &status) != 0) return 0;
  return (static_cast<uint64_t>(status.st_dev) << 48U) ^ status.st_ino;
}

}  // namespace

size_t resident_bytes() { return bytes_in_proc("status", "VmRSS"); }

size_t unshared_bytes() { return bytes_in_proc("status", "RssAnon"); }

size_t peak_resident_bytes() {
  // Pages of shared memory count in every process that has read them: here only as this process' share.
  const size_t mapped = bytes_in_proc("status", "RssShmem");
  const size_t share = bytes_in_proc("smaps_rollup", "Pss_Shmem");
  return bytes_in_proc("status", "VmHWM") - (share == 0 ? 0 : mapped - std::min(mapped, share));
}

std::vector<MemoryLimit> memory_limits(const fs::path& root) {
  const auto physical = static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<MemoryLimit> limits = {{physical, "this host has", kPhysicalMemory}};
  for (const Hierarchy& hierarchy : hierarchies(root)) {
    const auto group = group_in(hierarchy.version, root);
    if (!group) continue;
    const char* const name = hierarchy.version == 2 ? "memory.max" : "memory.limit_in_bytes";
    std::string below = below_mount(*group, hierarchy.top);
    for (;;) {
      const std::string folder = hierarchy.folder + below;
      const fs::path here = root / folder.substr(1);
      if (const auto bytes = number_in_file(here / name); bytes && *bytes < physical) {
        limits.push_back({*bytes, fmt::format("{} of {} allows", name, folder), id_of(here)});
      }
      if (below.empty()) break;
      below.resize(below.rfind('/'));
    }
  }
  return limits;
}

std::string machine_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string line;
  std::getline(file, line);
  return line;
}

std::vector<int> cores_of_process() {
  std::set<int> cores;
  for (const int cpu : cpus_of_process()) {
    // The list begins with the lowest number.
    std::ifstream siblings(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    int first = cpu;
    cores.insert(siblings >> first ? first : cpu);
  }
  return {cores.begin(), cores.end()};
}

}  // namespace cadre
