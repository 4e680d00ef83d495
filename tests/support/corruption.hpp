// SPDX-License-Identifier: Apache-2.0
// Damages the files of a folder as disks, crashes and people do, and makes them whole again.
#pragma once

#include <algorithm>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/support/files.hpp"

namespace cadre::test {

class CorruptibleFolder {
 public:
  // Takes all regular files below as they are now.
  CorruptibleFolder(std::filesystem::path folder, uint64_t seed) : folder_(std::move(folder)), random_(seed) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      if (!entry.is_regular_file()) continue;
      content_[entry.path()] = read_file(entry.path());
      names_.push_back(entry.path());
    }
    std::ranges::sort(names_);
  }

  // Damages one file or two, and says how. Which ones: touched().
  std::string corrupt() {
    const std::filesystem::path file = any_file();
    const std::string name = file.lexically_relative(folder_).string();
    switch (below(9)) {
      case 0: return name + ": " + flip(file);
      case 1:
        return name + ": cut to " + std::to_string(change(file, [&](std::string& s) { s.resize(below(s.size())); }));
      case 2:
        return name + ": grown to " + std::to_string(change(file, [&](std::string& s) { s += noise(1 + below(64)); }));
      case 3:
        return name + ": a block of zeros in " + std::to_string(change(file, [&](std::string& s) { blot(s, false); }));
      case 4:
        return name + ": a block of noise in " + std::to_string(change(file, [&](std::string& s) { blot(s, true); }));
      case 5:
        return name + ": a block left out, leaves " + std::to_string(change(file, [&](std::string& s) { lose(s); }));
      case 6: touched_.insert(file), std::filesystem::remove(file); return name + ": deleted";
      case 7: return name + ": a copy of " + copy_over(file, any_file());
      default: return name + ": swapped with " + swap(file, any_file());
    }
  }

  const std::set<std::filesystem::path>& touched() const { return touched_; }

  void restore() {
    for (const std::filesystem::path& file : touched_) {
      std::filesystem::remove_all(file);
      write_file(file, content_.at(file));
    }
    touched_.clear();
  }

  // For files that are changed by those who read them.
  void restore_all() {
    touched_.insert(names_.begin(), names_.end());
    restore();
  }

  size_t below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(random_() % bound); }

 private:
  std::filesystem::path any_file() { return names_[below(names_.size())]; }

  template <class Change>
  size_t change(const std::filesystem::path& file, Change&& action) {
    std::string content = content_.at(file);
    action(content);
    touched_.insert(file);
    write_file(file, content);
    return content.size();
  }
  std::string flip(const std::filesystem::path& file) {
    const size_t count = 1 + below(4);
    change(file, [&](std::string& s) {
      for (size_t i = 0; i < count && !s.empty(); ++i) s[below(s.size())] ^= static_cast<char>(1 << below(8));
    });
    return std::to_string(count) + " bits flipped";
  }
  std::string noise(size_t length) {
    std::string bytes(length, '\0');
    for (char& byte : bytes) byte = static_cast<char>(below(256));
    return bytes;
  }
  void blot(std::string& content, bool with_noise) {
    const size_t first = below(content.size());
    const size_t count = std::min(content.size() - first, size_t{1} << below(13));
    content.replace(first, count, with_noise ? noise(count) : std::string(count, '\0'));
  }
  void lose(std::string& content) {
    const size_t first = below(content.size());
    content.erase(first, 1 + below(512));
  }
  std::string copy_over(const std::filesystem::path& to, const std::filesystem::path& from) {
    touched_.insert(to);
    write_file(to, content_.at(from));
    return from.lexically_relative(folder_).string();
  }
  std::string swap(const std::filesystem::path& one, const std::filesystem::path& other) {
    copy_over(one, other);
    return copy_over(other, one), other.lexically_relative(folder_).string();
  }

  std::filesystem::path folder_;
  std::mt19937_64 random_;
  std::map<std::filesystem::path, std::string> content_;
  std::vector<std::filesystem::path> names_;
  std::set<std::filesystem::path> touched_;
};

}  // namespace cadre::test
