// SPDX-License-Identifier: Apache-2.0
// A named group of ranks with typed calls, each of which owns what it reads and writes. Move-only: a copy would hide a
// collective, so it is the explicit duplicate().
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "comm/job/wait.hpp"
#include "comm/transport/transport.hpp"

namespace cadre {

class Communicator {
 public:
  Communicator(std::unique_ptr<Transport> transport, std::string name)
      : transport_(std::move(transport)), name_(std::move(name)) {}

  int rank() const { return transport_->rank(); }
  int size() const { return transport_->size(); }
  const std::string& name() const { return name_; }
  Transport& transport() const { return *transport_; }
  JobContext& job() const { return transport_->job(); }

  // Collective: all ranks of this group. Messages of the new group never meet those of this one.
  Communicator duplicate(std::string name) const { return split(0, rank(), std::move(name)); }
  // Collective: ranks of one `color` form a group, ordered by (key, rank).
  Communicator split(int color, int key, std::string name) const {
    Request all_here = barrier();  // split itself cannot tell who is late
    wait(all_here);
    return {transport_->split(color, key), std::move(name)};
  }

  // Collective, as are all calls up to barrier(). Element by element over the ranks; T is float, double, int32_t or int64_t.
  template <class T>
  Pending<std::vector<T>> all_reduce(std::vector<T> values, ReduceOp op) const {
    return reduce_value(std::make_shared<std::vector<T>>(std::move(values)), op);
  }
  template <class T, size_t N>
  Pending<std::array<T, N>> all_reduce(const std::array<T, N>& values, ReduceOp op) const {
    return reduce_value(std::make_shared<std::array<T, N>>(values), op);
  }
  template <class T>
  requires std::is_arithmetic_v<T> Pending<T> all_reduce(T value, ReduceOp op)
  const {
    const auto owned = std::make_shared<T>(value);
    return {all_reduce(std::span(owned.get(), 1), owned, op), owned};
  }
  // In place, for values that are large: those of `owner`, which keeps their memory.
  template <class T>
  Request all_reduce(std::span<T> values, const std::shared_ptr<const void>& owner, ReduceOp op) const {
    Request request = transport_->all_reduce(reinterpret_cast<std::byte*>(values.data()),
                                             static_cast<int64_t>(values.size()), dtype_of<T>, op);
    request.keep(owner);
    return request;
  }

  // One value of each rank, by rank.
  template <class T>
  requires std::is_trivially_copyable_v<T> Pending<std::vector<T>> all_gather(const T& mine)
  const { return gather_values(std::span(&mine, 1)); }
  // Equally many values of each rank, one rank after the other.
  template <class T>
  Pending<std::vector<T>> all_gather(const std::vector<T>& mine) const {
    return gather_values(std::span(mine));
  }
  // Block p of `send` goes to rank p; block p of the result comes from rank p. Blocks are equally long.
  template <class T>
  Pending<std::vector<T>> all_to_all(std::vector<T> send) const {
    const auto sent = std::make_shared<std::vector<T>>(std::move(send));
    const auto received = std::make_shared<std::vector<T>>(sent->size());
    Request request =
        transport_->all_to_all(std::as_bytes(std::span(*sent)), std::as_writable_bytes(std::span(*received)));
    request.keep(sent);
    return {std::move(request), received};
  }
  // The values of `root`. All ranks give equally many.
  template <class T>
  Pending<std::vector<T>> broadcast(std::vector<T> values, int root) const {
    const auto owned = std::make_shared<std::vector<T>>(std::move(values));
    return {transport_->broadcast(std::as_writable_bytes(std::span(*owned)), root), owned};
  }
  Request barrier() const { return transport_->barrier(); }

  // Point to point, matched by (sender, tag) in order; the receiver knows the size.
  template <class T>
  requires std::is_trivially_copyable_v<T> Request send(const T& value, int peer, int tag)
  const {
    const auto owned = std::make_shared<T>(value);
    return send(std::as_bytes(std::span(owned.get(), 1)), owned, peer, tag);
  }
  template <class T>
  requires std::is_trivially_copyable_v<T> Pending<T> receive(int peer, int tag)
  const {
    const auto owned = std::make_shared<T>();
    return {transport_->receive(std::as_writable_bytes(std::span(owned.get(), 1)), peer, tag), owned};
  }
  // Memory that `owner` keeps.
  Request send(std::span<const std::byte> bytes, const std::shared_ptr<const void>& owner, int peer, int tag) const {
    Request request = transport_->send(bytes, peer, tag);
    request.keep(owner);
    return request;
  }
  Request receive(std::span<std::byte> bytes, const std::shared_ptr<const void>& owner, int peer, int tag) const {
    Request request = transport_->receive(bytes, peer, tag);
    request.keep(owner);
    return request;
  }

 private:
  template <class Values>
  Pending<Values> reduce_value(const std::shared_ptr<Values>& values, ReduceOp op) const {
    return {all_reduce(std::span<typename Values::value_type>(*values), values, op), values};
  }
  template <class T>
  Pending<std::vector<T>> gather_values(std::span<const T> mine) const {
    const auto sent = std::make_shared<std::vector<T>>(mine.begin(), mine.end());
    const auto all = std::make_shared<std::vector<T>>(mine.size() * static_cast<size_t>(size()));
    Request request = transport_->all_gather(std::as_bytes(std::span(*sent)), std::as_writable_bytes(std::span(*all)));
    request.keep(sent);
    return {std::move(request), all};
  }

  std::unique_ptr<Transport> transport_;
  std::string name_;
};

}  // namespace cadre
