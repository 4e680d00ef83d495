// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/request.hpp"

#include <utility>

namespace cadre {

Request& Request::operator=(Request&& other) noexcept {
  if (this != &other) {
    abandon();
    what_ = std::move(other.what_);
    operation_ = std::move(other.operation_);
    buffers_ = std::move(other.buffers_);
  }
  return *this;
}

Request::~Request() { abandon(); }

bool Request::test() {
  if (operation_ == nullptr) return true;
  if (!operation_->test()) return false;
  operation_.reset();
  buffers_.clear();
  return true;
}

void Request::abandon() noexcept {
  if (operation_ == nullptr) return;
  static_cast<void>(operation_.release());
  // Growing this list may fail for lack of memory; then the process ends, which is what an abandoned job does anyway.
  static_cast<void>(new std::vector<Buffer>(std::move(buffers_)));
}

}  // namespace cadre
