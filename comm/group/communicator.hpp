// SPDX-License-Identifier: Apache-2.0
// A named group of ranks with typed calls. Move-only: a copy would hide a collective, so it is the explicit
// duplicate().
#pragma once

#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "comm/transport/transport.hpp"
#include "comm/transport/wait.hpp"

namespace cadre {

class Communicator {
 public:
  Communicator(std::unique_ptr<Transport> transport, std::string name)
      : transport_(std::move(transport)), name_(std::move(name)) {}

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  const std::string& name() const { return name_; }
  Transport& transport() const { return *transport_; }

  // Collective: all ranks of this group. Messages of the new group never meet those of this one.
  Communicator duplicate(std::string name) const { return split(0, rank(), std::move(name)); }
  // Collective: ranks of one `color` form a group, ordered by (key, rank).
  Communicator split(int color, int key, std::string name) const {
    Request all_here = barrier();  // split itself cannot tell who is late
    wait(all_here);
    return {transport_->split(color, key), std::move(name)};
  }

  // Collective; the memory must live until the request is complete.
  template <class T>
  Request all_reduce(std::span<T> values, ReduceOp op) const {
    return transport_->all_reduce(reinterpret_cast<std::byte*>(values.data()), static_cast<int64_t>(values.size()),
                                  dtype_of<T>, op);
  }
  template <class T>
  Request all_gather(std::span<const T> mine, std::span<T> all) const {
    return transport_->all_gather(std::as_bytes(mine), std::as_writable_bytes(all));
  }
  template <class T>
  Request all_to_all(std::span<const T> send, std::span<T> receive) const {
    return transport_->all_to_all(std::as_bytes(send), std::as_writable_bytes(receive));
  }
  template <class T>
  Request broadcast(std::span<T> values, int root) const {
    return transport_->broadcast(std::as_writable_bytes(values), root);
  }
  Request barrier() const { return transport_->barrier(); }

 private:
  std::unique_ptr<Transport> transport_;
  std::string name_;
};

}  // namespace cadre
