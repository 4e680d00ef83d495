// SPDX-License-Identifier: Apache-2.0
// One rank of a job of any size whose other ranks are not there: every operation is complete at once, as if all ranks gave
// what this one gives, and is counted. For values that grow with the number of ranks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "comm/transport/transport.hpp"

namespace cadre::test {

// Of one rank.
struct CountedBytes {
  int64_t operations = 0;
  int64_t messages = 0;  // of ragged all-to-alls and between two ranks
  int64_t given = 0;     // bytes that this rank hands over
  int64_t memory = 0;    // bytes of the arrays of collective operations, in and out
};

class LoneRank final : public Transport {
 public:
  LoneRank(JobContext& job, int rank, int size, CountedBytes& counted)
      : Transport(job), rank_(rank), size_(size), counted_(counted) {}

  std::string_view name() const override { return "lone"; }
  std::string library() const override { return "none"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int world_rank(int peer) const override { return peer; }

  Request send(std::span<const std::byte> bytes, int /*peer*/, int /*tag*/) override {
    ++counted_.messages;
    return count(bytes.size(), bytes.size());
  }
  Request receive(std::span<std::byte> bytes, int /*peer*/, int /*tag*/) override { return count(0, bytes.size()); }
  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    std::ranges::copy(send, receive.begin());
    return count(send.size(), send.size() + receive.size());
  }
  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    int64_t rows = 0;
    for (const int64_t count : send.counts) {
      counted_.messages += count > 0 ? 1 : 0;
      rows += count;
    }
    return count(static_cast<size_t>(rows) * row_bytes, (send.counts.size() + receive.counts.size()) * sizeof(int64_t));
  }
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    for (size_t at = 0; at < all.size(); at += mine.size()) std::ranges::copy(mine, all.subspan(at).begin());
    return count(mine.size(), mine.size() + all.size());
  }
  Request all_reduce(std::byte* /*data*/, int64_t number, DType dtype, ReduceOp /*op*/) override {
    const size_t bytes = static_cast<size_t>(number) * size_of(dtype);
    return count(bytes, bytes);
  }
  Request broadcast(std::span<std::byte> bytes, int /*root*/) override { return count(bytes.size(), bytes.size()); }
  Request barrier() override { return count(0, 0); }

  void progress() override {}
  bool progresses_anywhere() const override { return false; }
  std::unique_ptr<Transport> split(int /*color*/, int /*key*/) override {
    return std::make_unique<LoneRank>(job(), rank_, size_, counted_);
  }
  int host_leader() override { return rank_; }
  std::unique_ptr<SharedMemory> share(size_t /*bytes*/) override { return nullptr; }

 private:
  Request count(size_t given, size_t memory) {
    ++counted_.operations;
    counted_.given += static_cast<int64_t>(given);
    counted_.memory += static_cast<int64_t>(memory);
    return {};
  }

  int rank_;
  int size_;
  CountedBytes& counted_;
};

}  // namespace cadre::test
