// SPDX-License-Identifier: Apache-2.0
#include <mpi.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

#include <array>
#include <cstring>
#include <exception>
#include <numeric>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/host_name.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/mpi_operations.hpp"

namespace cadre {
namespace {

// Where MPI puts the memory that ranks of a host share.
constexpr char kSharedMemoryPath[] = "/dev/shm";
// Open MPI adds its own state to a window and refuses one unless a twentieth more is free: on the rank that creates the file
// only, so that the others would wait for it.
constexpr uint64_t kWindowStateBytes = 1 << 20;
constexpr uint64_t kSpareFraction = 20;

size_t free_shared_bytes() {
  struct statvfs space {};
  if (statvfs(kSharedMemoryPath, &space) != 0) return 0;
  return static_cast<size_t>(space.f_bavail) * space.f_frsize;
}

class MpiSharedMemory : public SharedMemory {
 public:
  MpiSharedMemory(JobContext& job, std::shared_ptr<MpiProcess> process, MPI_Win window, std::byte* base,
                  size_t bytes_per_rank)
      : SharedMemory(base, bytes_per_rank),
        job_(job),
        process_(std::move(process)),
        window_(window),
        cleanup_(job, process_) {
    process_->shared_bytes_promised += bytes_per_rank;
  }
  ~MpiSharedMemory() override {
    process_->shared_bytes_promised -= bytes_per_rank();
    if (!cleanup_.safe_to_free()) return;
    try {
      blocking_call(job_, "the end of a shared window", [window = window_]() mutable {
        static_cast<void>(MPI_Win_unlock_all(window));
        static_cast<void>(MPI_Win_free(&window));
      });
    } catch (const std::exception&) {
      // A rank died or is late: the next wait for it reports that.
    }
  }

 private:
  JobContext& job_;
  std::shared_ptr<MpiProcess> process_;
  MPI_Win window_;
  CollectiveCleanupGuard cleanup_;
};

struct Window {
  MPI_Win window = MPI_WIN_NULL;
  void* mine = nullptr;
  void* base = nullptr;
};

// Collective over `comm`, blocking.
Window make_window(const MpiProcess& process, MPI_Comm comm, int size, size_t bytes) {
  // What was promised before, to other lanes, may not have been touched yet and then still counts as free. Other groups
  // of this host may want as much at the same time.
  const auto groups_on_host = static_cast<uint64_t>((process.ranks_on_host + size - 1) / size);
  uint64_t wanted = groups_on_host * (bytes + process.shared_bytes_promised);
  auto free_bytes = static_cast<uint64_t>(free_shared_bytes());
  CADRE_MPI(MPI_Allreduce(MPI_IN_PLACE, &wanted, 1, MPI_UINT64_T, MPI_SUM, comm));
  CADRE_MPI(MPI_Allreduce(MPI_IN_PLACE, &free_bytes, 1, MPI_UINT64_T, MPI_MIN, comm));  // so that all decide alike
  wanted += wanted / kSpareFraction + kWindowStateBytes;
  if (wanted > free_bytes) {
    throw Error(
        ErrorKind::environment,
        fmt::format("{} ranks on {} want to share {} MiB, {} has {} MiB free", static_cast<int>(groups_on_host) * size,
                    host_name(), wanted >> 20, kSharedMemoryPath, free_bytes >> 20),
        "give the host or container more of it (docker --shm-size), or set exchange.strategy=flat");
  }
  Window made;
  CADRE_MPI(MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes), 1, MPI_INFO_NULL, comm, &made.mine, &made.window));
  CADRE_MPI(MPI_Win_lock_all(MPI_MODE_NOCHECK, made.window));  // loads and stores from here on, no MPI calls
  MPI_Aint size_of_first = 0;
  int unit = 0;
  CADRE_MPI(MPI_Win_shared_query(made.window, 0, &size_of_first, &unit, &made.base));
  return made;
}

class MpiTransport : public Transport {
 public:
  MpiTransport(JobContext& job, std::shared_ptr<MpiProcess> process, MPI_Comm comm)
      : Transport(job), process_(std::move(process)), comm_(comm), cleanup_(job, process_) {
    CADRE_MPI(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
    CADRE_MPI(MPI_Comm_rank(comm_, &rank_));
    CADRE_MPI(MPI_Comm_size(comm_, &size_));
    world_rank_.resize(static_cast<size_t>(size_));
    std::vector<int> ranks(world_rank_.size());
    std::iota(ranks.begin(), ranks.end(), 0);
    MPI_Group group = MPI_GROUP_NULL;
    MPI_Group world = MPI_GROUP_NULL;
    CADRE_MPI(MPI_Comm_group(comm_, &group));
    CADRE_MPI(MPI_Comm_group(MPI_COMM_WORLD, &world));
    CADRE_MPI(MPI_Group_translate_ranks(group, size_, ranks.data(), world, world_rank_.data()));
    CADRE_MPI(MPI_Group_free(&group));
    CADRE_MPI(MPI_Group_free(&world));
    CADRE_MPI(MPI_Comm_size(MPI_COMM_WORLD, &world_size_));
  }
  ~MpiTransport() override {
    if (cleanup_.safe_to_free()) static_cast<void>(MPI_Comm_free(&comm_));
  }

  std::string_view name() const override { return "mpi"; }
  std::string library() const override {
    std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
    int length = 0;
    CADRE_MPI(MPI_Get_library_version(text.data(), &length));
    const std::string version(text.data());
    return version.substr(0, version.find_first_of(",\n"));
  }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int world_rank(int peer) const override { return world_rank_[peer]; }

  Request send(std::span<const std::byte> bytes, int peer, int tag) override {
    auto operation = std::make_unique<MessagesOperation>(1);
    const BlockType block(bytes.size());
    CADRE_MPI(MPI_Isend(bytes.data(), 1, block.get(), peer, tag, comm_,
                        operation->add(false, world_rank_[peer], bytes.size())));
    return {job(), describe(fmt::format("send of {} bytes to rank {}, tag {}", bytes.size(), world_rank_[peer], tag)),
            std::move(operation), static_cast<int64_t>(bytes.size())};
  }

  Request receive(std::span<std::byte> bytes, int peer, int tag) override {
    auto operation = std::make_unique<MessagesOperation>(1);
    const BlockType block(bytes.size());
    CADRE_MPI(MPI_Irecv(bytes.data(), 1, block.get(), peer, tag, comm_,
                        operation->add(true, world_rank_[peer], bytes.size())));
    return {job(),
            describe(fmt::format("receive of {} bytes from rank {}, tag {}", bytes.size(), world_rank_[peer], tag)),
            std::move(operation)};
  }

  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    CADRE_CHECK(send.size() == receive.size() && send.size() % static_cast<size_t>(size_) == 0,
                fmt::format("all_to_all of {} bytes over {} ranks", send.size(), size_));
    const int block = checked_int(send.size() / static_cast<size_t>(size_), "bytes of an all_to_all block");
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ialltoall(send.data(), block, MPI_BYTE, receive.data(), block, MPI_BYTE, comm_, operation->handle()));
    return {job(), describe(fmt::format("all_to_all of {} bytes a rank", block)), std::move(operation),
            int64_t{block} * (size_ - 1)};
  }

  // One message a pair instead of MPI_Ialltoallv, which is the same linear algorithm inside: counts and offsets stay 64
  // bits wide, and a wait that fails can name the peer.
  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    const RowType row(row_bytes);
    for (int peer = 0; peer < size_; ++peer) {
      checked_int(receive.counts[peer], "rows to receive");
      checked_int(send.counts[peer], "rows to send");
    }
    auto operation = std::make_unique<MessagesOperation>(2 * size_);
    int64_t rows_sent = 0;
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ - step + size_) % size_;
      if (receive.counts[peer] == 0) continue;
      const auto rows = static_cast<int>(receive.counts[peer]);
      CADRE_MPI(MPI_Irecv(receive.base + receive.offsets[peer] * row_bytes, rows, row.get(), peer, kRowsTag, comm_,
                          operation->add(true, world_rank_[peer], rows * row_bytes)));
    }
    for (int step = 1; step < size_; ++step) {
      const int peer = (rank_ + step) % size_;
      if (send.counts[peer] == 0) continue;
      const auto rows = static_cast<int>(send.counts[peer]);
      rows_sent += rows;
      CADRE_MPI(MPI_Isend(send.base + send.offsets[peer] * row_bytes, rows, row.get(), peer, kRowsTag, comm_,
                          operation->add(false, world_rank_[peer], rows * row_bytes)));
    }
    if (send.counts[rank_] > 0) {
      std::memcpy(receive.base + receive.offsets[rank_] * row_bytes, send.base + send.offsets[rank_] * row_bytes,
                  static_cast<size_t>(send.counts[rank_]) * row_bytes);
    }
    return {job(), describe(fmt::format("all_to_all of rows of {} bytes", row_bytes)), std::move(operation),
            rows_sent * static_cast<int64_t>(row_bytes)};
  }

  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const int bytes = checked_int(mine.size(), "bytes to gather");
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Iallgather(mine.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm_, operation->handle()));
    return {job(), describe(fmt::format("all_gather of {} bytes a rank", bytes)), std::move(operation),
            int64_t{bytes} * (size_ - 1)};
  }

  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    const size_t bytes = static_cast<size_t>(count) * size_of(dtype);
    CADRE_MPI(MPI_Iallreduce(MPI_IN_PLACE, data, checked_int(count, "elements to reduce"), mpi_type(dtype), mpi_op(op),
                             comm_, operation->handle()));
    return {job(), describe(fmt::format("all_reduce of {} {}", count, name_of(dtype))), std::move(operation),
            static_cast<int64_t>(bytes)};
  }

  Request broadcast(std::span<std::byte> bytes, int root) override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ibcast(bytes.data(), checked_int(bytes.size(), "bytes to broadcast"), MPI_BYTE, root, comm_,
                         operation->handle()));
    return {job(), describe(fmt::format("broadcast of {} bytes from rank {}", bytes.size(), world_rank_[root])),
            std::move(operation)};
  }

  Request barrier() override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ibarrier(comm_, operation->handle()));
    return {job(), describe("barrier"), std::move(operation)};
  }

  void progress() override {
    int arrived = 0;
    CADRE_MPI(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &arrived, MPI_STATUS_IGNORE));
  }

  bool progresses_anywhere() const override {
    int level = MPI_THREAD_SINGLE;
    CADRE_MPI(MPI_Query_thread(&level));
    return level == MPI_THREAD_MULTIPLE;
  }

  int host_leader() override {
    return blocking_call<int>(job(), describe("finding who shares a host"), [comm = comm_, rank = rank_](int& leader) {
      MPI_Comm host = MPI_COMM_NULL;
      CADRE_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &host));
      leader = rank;
      CADRE_MPI(MPI_Bcast(&leader, 1, MPI_INT, 0, host));
      CADRE_MPI(MPI_Comm_free(&host));
    });
  }

  std::unique_ptr<SharedMemory> share(size_t bytes) override {
    const auto made = blocking_call<Window>(job(), describe("making shared memory"),
                                            [process = process_, comm = comm_, size = size_, bytes](Window& window) {
                                              window = make_window(*process, comm, size, bytes);
                                            });
    // Advice only, followed where /sys/kernel/mm/transparent_hugepage/shmem_enabled says advise.
    static_cast<void>(madvise(made.base, bytes * static_cast<size_t>(size_), MADV_HUGEPAGE));
    auto memory =
        std::make_unique<MpiSharedMemory>(job(), process_, made.window, static_cast<std::byte*>(made.base), bytes);
    if (memory->of(rank_).data() != made.mine) {
      throw Error(ErrorKind::environment, "this MPI library does not lay shared windows out contiguously",
                  "set exchange.strategy=flat");
    }
    return memory;
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    return make_mpi_transport(
        job(), process_,
        blocking_call<MPI_Comm>(job(), describe("splitting a group"), [comm = comm_, color, key](MPI_Comm& part) {
          CADRE_MPI(MPI_Comm_split(comm, color, key, &part));
        }));
  }

 private:
  // Above every tag that callers may use.
  static constexpr int kRowsTag = 32767;

  std::string describe(const std::string& what) const {
    return fmt::format("{} (rank {} of {})", what, world_rank_[rank_], world_size_);
  }

  std::shared_ptr<MpiProcess> process_;
  MPI_Comm comm_;
  CollectiveCleanupGuard cleanup_;
  int rank_ = 0;
  int size_ = 1;
  std::vector<int> world_rank_;  // of each rank of this group: what messages name
  int world_size_ = 1;
};

}  // namespace

std::unique_ptr<Transport> make_mpi_transport(JobContext& job, std::shared_ptr<MpiProcess> process, MPI_Comm comm) {
  return std::make_unique<MpiTransport>(job, std::move(process), comm);
}

}  // namespace cadre
