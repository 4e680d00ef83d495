// SPDX-License-Identifier: Apache-2.0
// What the ranks of one group can do with bytes. Every operation starts and returns a Request; nothing here blocks,
// except split and what makes shared memory, which are rare. Operations of one group are started in the same order by all its ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "comm/base/dtype.hpp"
#include "comm/job/job_context.hpp"
#include "comm/job/request.hpp"

namespace cadre {

enum class ReduceOp { sum, max, min };

// One side of a ragged all-to-all: the rows of peer p are rows [offsets[p], offsets[p] + counts[p]) after `base`.
struct RaggedRows {
  std::byte* base;
  std::span<const int64_t> counts;
  std::span<const int64_t> offsets;
};
struct ConstRaggedRows {
  const std::byte* base;
  std::span<const int64_t> counts;
  std::span<const int64_t> offsets;
};

// Memory of the ranks of one host, mapped by all of them: `bytes` of rank 0, then `bytes` of rank 1, ... What one rank
// writes and publishes with a release store, another that saw the store with acquire may read.
class SharedMemory {
 public:
  SharedMemory(std::byte* base, size_t bytes_per_rank) : base_(base), bytes_per_rank_(bytes_per_rank) {}
  virtual ~SharedMemory() = default;

  std::byte* base() const { return base_; }
  size_t bytes_per_rank() const { return bytes_per_rank_; }
  std::span<std::byte> of(int rank) const {
    return {base_ + static_cast<size_t>(rank) * bytes_per_rank_, bytes_per_rank_};
  }

 private:
  std::byte* base_;
  size_t bytes_per_rank_;
};

// The memory of every span must stay valid, and what is received untouched, until the Request is complete: callers hand its
// owner to Request::keep, so that an operation that is given up keeps it. Communicator has calls that do so by themselves.
class Transport {
 public:
  // `job` is that of this rank, and outlives its transports and requests.
  explicit Transport(JobContext& job) : job_(job) {}
  virtual ~Transport() = default;

  JobContext& job() const { return job_; }

  virtual std::string_view name() const = 0;  // "mpi", "local"
  virtual std::string library() const = 0;    // with its version, in one line
  virtual int rank() const = 0;
  virtual int size() const = 0;
  // The rank of the job that `peer` of this group is: what messages name.
  virtual int world_rank(int peer) const = 0;

  // Point to point, matched by (sender, tag) in order; tag in [0, 32766]. Both sides know the size.
  virtual Request send(std::span<const std::byte> bytes, int peer, int tag) = 0;
  virtual Request receive(std::span<std::byte> bytes, int peer, int tag) = 0;

  // Block p of `send` goes to rank p, block p of `receive` comes from rank p; blocks are equal. P = 3, two bytes each:
  //   rank 0 sends  a0 a1 a2        rank 0 receives  a0 b0 c0
  //   rank 1 sends  b0 b1 b2        rank 1 receives  a1 b1 c1
  //   rank 2 sends  c0 c1 c2        rank 2 receives  a2 b2 c2
  virtual Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) = 0;
  // The same with rows of `row_bytes`, any number from each rank to each other; a pair without rows sends no message.
  virtual Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) = 0;
  // Block r of `all` becomes rank r's `mine`.
  virtual Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) = 0;
  // In place; f32, f64, i32 or i64. The order of additions is fixed for a given number of ranks.
  virtual Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) = 0;
  virtual Request broadcast(std::span<std::byte> bytes, int root) = 0;
  virtual Request barrier() = 0;

  // From here on operations of this group, and of groups that are split from it, on memory of a device come after what
  // `queue` was told before them; the queue is one of the device's own library (a cudaStream_t), and null is none. False
  // where the transport cannot do that: then memory holds what is to be sent before an operation starts.
  virtual bool follow(void* /*queue*/) { return false; }

  // Advances operations that are not being tested; throws where a rank is known to have failed. For waits on shared memory.
  virtual void progress() = 0;
  // Whether another thread may call progress() at any time, and data moves when it does.
  virtual bool progresses_anywhere() const = 0;

  // Blocking and collective over the group. Ranks of one colour form a new group, ordered by (key, old rank).
  virtual std::unique_ptr<Transport> split(int color, int key) = 0;
  // Blocking and collective: the lowest rank of this group that can share memory with this one.
  virtual int host_leader() = 0;
  // Blocking and collective over ranks that can share memory; `bytes` is the same on all of them. Throws
  // ErrorKind::environment, on all ranks alike, when the host has not that much.
  virtual std::unique_ptr<SharedMemory> share(size_t bytes) = 0;

 private:
  JobContext& job_;
};

// Collective over `world`, all processes of the job; its messages carry the job's secret. From here on the context of the
// job has it.
void start_liveness(Transport& world);

}  // namespace cadre
