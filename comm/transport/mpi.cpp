// SPDX-License-Identifier: Apache-2.0
#include "comm/transport/mpi.hpp"

#include <mpi.h>
#include <sys/mman.h>
#include <sys/statvfs.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <numeric>
#include <thread>
#include <tuple>
#include <vector>

#include "comm/base/check.hpp"

namespace cadre {
namespace {

void check_mpi(int code, const char* call, std::source_location where = std::source_location::current()) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  std::ignore = MPI_Error_string(code, text, &length);  // the text stays empty if even this fails
  throw Error(ErrorKind::environment, fmt::format("{} failed: {}", call, text), {}, where);
}

#define CADRE_MPI(call) check_mpi((call), #call)

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return MPI_FLOAT;
    case DType::f64: return MPI_DOUBLE;
    case DType::i32: return MPI_INT32_T;
    case DType::i64: return MPI_INT64_T;
    default: break;
  }
  throw Error(ErrorKind::internal, fmt::format("MPI cannot reduce {}", name_of(dtype)));
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return MPI_SUM;
    case ReduceOp::max: return MPI_MAX;
    case ReduceOp::min: return MPI_MIN;
  }
  throw Error(ErrorKind::internal, "unknown reduction");
}

// A row as one MPI element, so that counts are rows and stay below 2^31.
class RowType {
 public:
  explicit RowType(size_t row_bytes) {
    CADRE_MPI(MPI_Type_contiguous(checked_int(row_bytes, "bytes of a row"), MPI_BYTE, &type_));
    CADRE_MPI(MPI_Type_commit(&type_));
  }
  // MPI keeps a type that pending messages use; the return code is dropped because a destructor cannot throw.
  ~RowType() { static_cast<void>(MPI_Type_free(&type_)); }
  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// A block of any size as one MPI element.
class BlockType {
 public:
  explicit BlockType(size_t bytes) {
    const RowType chunk(kChunk);
    const std::array<int, 2> counts = {checked_int(bytes / kChunk, "chunks of a message"),
                                       static_cast<int>(bytes % kChunk)};
    const std::array<MPI_Aint, 2> offsets = {0, static_cast<MPI_Aint>(bytes / kChunk * kChunk)};
    const std::array<MPI_Datatype, 2> types = {chunk.get(), MPI_BYTE};
    CADRE_MPI(MPI_Type_create_struct(2, counts.data(), offsets.data(), types.data(), &type_));
    CADRE_MPI(MPI_Type_commit(&type_));
  }
  ~BlockType() { static_cast<void>(MPI_Type_free(&type_)); }
  BlockType(const BlockType&) = delete;
  BlockType& operator=(const BlockType&) = delete;
  MPI_Datatype get() const { return type_; }

 private:
  static constexpr size_t kChunk = size_t{1} << 20;
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// A nonblocking collective: MPI does not tell which peer is late.
class CollectiveOperation : public PendingOperation {
 public:
  explicit CollectiveOperation(int size) : size_(size) {}
  MPI_Request* handle() { return &request_; }
  bool test() override {
    int done = 0;
    CADRE_MPI(MPI_Test(&request_, &done, MPI_STATUS_IGNORE));
    return done != 0;
  }
  std::string missing() const override { return fmt::format("one or more of its {} ranks", size_); }

 private:
  MPI_Request request_ = MPI_REQUEST_NULL;
  int size_;
};

// A set of messages, each with the peer it is from or to.
class MessagesOperation : public PendingOperation {
 public:
  // Room for up to `count` messages: MPI holds the addresses of their handles only while a call runs.
  explicit MessagesOperation(int count) {
    requests_.reserve(static_cast<size_t>(count));
    messages_.reserve(static_cast<size_t>(count));
  }

  // `peer` is a world rank.
  MPI_Request* add(bool receiving, int peer, size_t bytes) {
    messages_.push_back({receiving, peer, bytes});
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  bool test() override {
    int done = 0;
    statuses_.resize(requests_.size());
    CADRE_MPI(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, statuses_.data()));
    if (done != 0) check_sizes();
    return done != 0;
  }

  std::string missing() const override {
    std::string text;
    for (size_t i = 0; i < requests_.size(); ++i) {
      int done = 0;
      if (MPI_Request_get_status(requests_[i], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done != 0) continue;
      const Message& message = messages_[i];
      if (!text.empty()) text += ", ";
      text += message.receiving ? fmt::format("rank {} (expected {} bytes, received none)", message.peer, message.bytes)
                                : fmt::format("rank {} (to take {} bytes)", message.peer, message.bytes);
    }
    return text.empty() ? "nobody" : text;
  }

 private:
  struct Message {
    bool receiving;
    int peer;
    size_t bytes;
  };
  // A message that is too long fails in MPI; one that is too short would pass.
  void check_sizes() const {
    for (size_t i = 0; i < messages_.size(); ++i) {
      const Message& message = messages_[i];
      if (!message.receiving) continue;
      MPI_Count received = 0;
      CADRE_MPI(MPI_Get_elements_x(&statuses_[i], MPI_BYTE, &received));
      CADRE_CHECK(static_cast<size_t>(received) == message.bytes,
                  fmt::format("expected {} bytes from rank {} and received {}", message.bytes, message.peer, received));
    }
  }

  std::vector<MPI_Request> requests_;
  std::vector<MPI_Status> statuses_;
  std::vector<Message> messages_;
};

// Where MPI puts the memory that ranks of a host share.
constexpr char kSharedMemoryPath[] = "/dev/shm";

size_t free_shared_bytes() {
  struct statvfs space {};
  if (statvfs(kSharedMemoryPath, &space) != 0) return 0;
  return static_cast<size_t>(space.f_bavail) * space.f_frsize;
}

// Groups and windows are given back where all goes well. Where an exception passes through, or MPI is over, they are left:
// giving them back is collective, and the peers may be waiting elsewhere.
bool all_is_well(int exceptions_at_start) {
  int over = 0;
  return std::uncaught_exceptions() == exceptions_at_start && MPI_Finalized(&over) == MPI_SUCCESS && over == 0;
}

// Of this process.
std::atomic<size_t> shared_bytes_promised = 0;
std::atomic<int> ranks_of_job_on_host = 1;

class MpiSharedMemory : public SharedMemory {
 public:
  MpiSharedMemory(MPI_Win window, std::byte* base, size_t bytes_per_rank)
      : SharedMemory(base, bytes_per_rank), window_(window), exceptions_(std::uncaught_exceptions()) {
    shared_bytes_promised += bytes_per_rank;
  }
  ~MpiSharedMemory() override {
    shared_bytes_promised -= bytes_per_rank();
    if (!all_is_well(exceptions_)) return;
    static_cast<void>(MPI_Win_unlock_all(window_));
    static_cast<void>(MPI_Win_free(&window_));
  }

 private:
  MPI_Win window_;
  int exceptions_;
};

class MpiTransport : public Transport {
 public:
  explicit MpiTransport(MPI_Comm comm) : comm_(comm) {
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
    if (all_is_well(exceptions_)) static_cast<void>(MPI_Comm_free(&comm_));
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
    return {describe(fmt::format("send of {} bytes to rank {}, tag {}", bytes.size(), world_rank_[peer], tag)),
            std::move(operation), static_cast<int64_t>(bytes.size())};
  }

  Request receive(std::span<std::byte> bytes, int peer, int tag) override {
    auto operation = std::make_unique<MessagesOperation>(1);
    const BlockType block(bytes.size());
    CADRE_MPI(MPI_Irecv(bytes.data(), 1, block.get(), peer, tag, comm_,
                        operation->add(true, world_rank_[peer], bytes.size())));
    return {describe(fmt::format("receive of {} bytes from rank {}, tag {}", bytes.size(), world_rank_[peer], tag)),
            std::move(operation)};
  }

  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    CADRE_CHECK(send.size() == receive.size() && send.size() % static_cast<size_t>(size_) == 0,
                fmt::format("all_to_all of {} bytes over {} ranks", send.size(), size_));
    const int block = checked_int(send.size() / static_cast<size_t>(size_), "bytes of an all_to_all block");
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ialltoall(send.data(), block, MPI_BYTE, receive.data(), block, MPI_BYTE, comm_, operation->handle()));
    return {describe(fmt::format("all_to_all of {} bytes a rank", block)), std::move(operation),
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
    return {describe(fmt::format("all_to_all of rows of {} bytes", row_bytes)), std::move(operation),
            rows_sent * static_cast<int64_t>(row_bytes)};
  }

  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    const int bytes = checked_int(mine.size(), "bytes to gather");
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Iallgather(mine.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, comm_, operation->handle()));
    return {describe(fmt::format("all_gather of {} bytes a rank", bytes)), std::move(operation),
            int64_t{bytes} * (size_ - 1)};
  }

  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Iallreduce(MPI_IN_PLACE, data, checked_int(count, "elements to reduce"), mpi_type(dtype), mpi_op(op),
                             comm_, operation->handle()));
    return {describe(fmt::format("all_reduce of {} {}", count, name_of(dtype))), std::move(operation),
            count * static_cast<int64_t>(size_of(dtype))};
  }

  Request broadcast(std::span<std::byte> bytes, int root) override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ibcast(bytes.data(), checked_int(bytes.size(), "bytes to broadcast"), MPI_BYTE, root, comm_,
                         operation->handle()));
    return {describe(fmt::format("broadcast of {} bytes from rank {}", bytes.size(), world_rank_[root])),
            std::move(operation)};
  }

  Request barrier() override {
    auto operation = std::make_unique<CollectiveOperation>(size_);
    CADRE_MPI(MPI_Ibarrier(comm_, operation->handle()));
    return {describe("barrier"), std::move(operation)};
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
    MPI_Comm host = MPI_COMM_NULL;
    CADRE_MPI(MPI_Comm_split_type(comm_, MPI_COMM_TYPE_SHARED, rank_, MPI_INFO_NULL, &host));
    int leader = rank_;
    CADRE_MPI(MPI_Bcast(&leader, 1, MPI_INT, 0, host));
    CADRE_MPI(MPI_Comm_free(&host));
    return leader;
  }

  std::unique_ptr<SharedMemory> share(size_t bytes) override {
    // What was promised before, to other lanes, may not have been touched yet and then still counts as free. Other groups
    // of this host may want as much at the same time.
    const auto groups_on_host = static_cast<uint64_t>((ranks_of_job_on_host + size_ - 1) / size_);
    uint64_t wanted = groups_on_host * (bytes + shared_bytes_promised);
    auto free_bytes = static_cast<uint64_t>(free_shared_bytes());
    CADRE_MPI(MPI_Allreduce(MPI_IN_PLACE, &wanted, 1, MPI_UINT64_T, MPI_SUM, comm_));
    CADRE_MPI(MPI_Allreduce(MPI_IN_PLACE, &free_bytes, 1, MPI_UINT64_T, MPI_MIN, comm_));  // so that all decide alike
    if (wanted > free_bytes) {
      throw Error(
          ErrorKind::environment,
          fmt::format("{} ranks of this host want to share {} MiB, {} has {} MiB free",
                      static_cast<int>(groups_on_host) * size_, wanted >> 20, kSharedMemoryPath, free_bytes >> 20),
          "give the host or container more of it (docker --shm-size), or set exchange.strategy=flat");
    }
    void* mine = nullptr;
    MPI_Win window = MPI_WIN_NULL;
    CADRE_MPI(MPI_Win_allocate_shared(static_cast<MPI_Aint>(bytes), 1, MPI_INFO_NULL, comm_, &mine, &window));
    CADRE_MPI(MPI_Win_lock_all(MPI_MODE_NOCHECK, window));  // loads and stores from here on, no MPI calls
    MPI_Aint size_of_first = 0;
    int unit = 0;
    void* base = nullptr;
    CADRE_MPI(MPI_Win_shared_query(window, 0, &size_of_first, &unit, &base));
    // Advice only, followed where /sys/kernel/mm/transparent_hugepage/shmem_enabled says advise.
    static_cast<void>(madvise(base, bytes * static_cast<size_t>(size_), MADV_HUGEPAGE));
    auto memory = std::make_unique<MpiSharedMemory>(window, static_cast<std::byte*>(base), bytes);
    if (memory->of(rank_).data() != mine) {
      throw Error(ErrorKind::environment, "this MPI library does not lay shared windows out contiguously",
                  "set exchange.strategy=flat");
    }
    return memory;
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    MPI_Comm part = MPI_COMM_NULL;
    CADRE_MPI(MPI_Comm_split(comm_, color, key, &part));
    return std::make_unique<MpiTransport>(part);
  }

 private:
  // Above every tag that callers may use.
  static constexpr int kRowsTag = 32767;

  std::string describe(const std::string& what) const {
    return fmt::format("{} (rank {} of {})", what, world_rank_[rank_], world_size_);
  }

  MPI_Comm comm_;
  int exceptions_ = std::uncaught_exceptions();
  int rank_ = 0;
  int size_ = 1;
  std::vector<int> world_rank_;  // of each rank of this group: what messages name
  int world_size_ = 1;
};

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv) : exceptions_(std::uncaught_exceptions()) {
  int provided = MPI_THREAD_SINGLE;
  CADRE_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided));
  CADRE_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI gives less than MPI_THREAD_FUNNELED",
              "use an MPI library built with thread support");
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() > exceptions_) abort_mpi_job(exit_code(ErrorKind::internal));
  static_cast<void>(MPI_Finalize());
}

std::unique_ptr<Transport> make_mpi_world() {
  MPI_Comm world = MPI_COMM_NULL;
  CADRE_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &world));
  MPI_Comm host = MPI_COMM_NULL;
  CADRE_MPI(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host));
  int ranks = 1;
  CADRE_MPI(MPI_Comm_size(host, &ranks));
  CADRE_MPI(MPI_Comm_free(&host));
  ranks_of_job_on_host = ranks;
  return std::make_unique<MpiTransport>(world);
}

void abort_mpi_job(int code) {
#ifdef MPICH_VERSION
  // MPICH's launcher drops what a rank wrote just before it aborts.
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
#endif
  static_cast<void>(MPI_Abort(MPI_COMM_WORLD, code));
  std::_Exit(code);
}

std::string mpi_library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  CADRE_MPI(MPI_Get_library_version(text, &length));
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

std::string mpi_thread_level() {
  int level = MPI_THREAD_SINGLE;
  CADRE_MPI(MPI_Query_thread(&level));
  switch (level) {
    case MPI_THREAD_SINGLE: return "single";
    case MPI_THREAD_FUNNELED: return "funneled";
    case MPI_THREAD_SERIALIZED: return "serialized";
    default: return "multiple";
  }
}

}  // namespace cadre
