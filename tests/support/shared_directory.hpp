// SPDX-License-Identifier: Apache-2.0
// A temporary directory that all ranks of a test see under the same name.
#pragma once

#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/group/communicator.hpp"
#include "comm/job/wait.hpp"
#include "tests/support/files.hpp"

namespace cadre::test {

class SharedDirectory {
 public:
  // Collective over `world`.
  explicit SharedDirectory(const Communicator& world) : world_(world) {
    std::vector<char> name(512);
    if (world.rank() == 0) {
      owned_.emplace();
      std::strncpy(name.data(), owned_->path().c_str(), name.size() - 1);
    }
    path_ = wait(world.broadcast(std::move(name), 0)).data();
  }
  // Collective: nobody uses it any more.
  ~SharedDirectory() {
    Request all_done = world_.barrier();
    wait(all_done);
  }
  SharedDirectory(const SharedDirectory&) = delete;
  SharedDirectory& operator=(const SharedDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

 private:
  const Communicator& world_;
  std::optional<TemporaryDirectory> owned_;  // rank 0
  std::filesystem::path path_;
};

}  // namespace cadre::test
