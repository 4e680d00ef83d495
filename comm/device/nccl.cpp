// SPDX-License-Identifier: Apache-2.0
#include "comm/device/nccl.hpp"

#include <nccl.h>

#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/device/cuda_check.cuh"
#include "comm/device/staged.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/forwarding.hpp"

namespace cadre {
namespace {

constexpr size_t kLargeBytes = size_t{64} << 10;  // below, the latency of a launch costs more than the host's way

void check(ncclResult_t status, const char* call) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  throw Error(ErrorKind::environment, fmt::format("{}: {}", call, ncclGetErrorString(status)),
              "NCCL_DEBUG=INFO says more; exchange.transport=mpi does without NCCL");
}

#define CADRE_NCCL(call) check(call, #call)

ncclDataType_t nccl_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return ncclFloat32;
    case DType::f64: return ncclFloat64;
    case DType::i32: return ncclInt32;
    case DType::i64: return ncclInt64;
    default: throw Error(ErrorKind::internal, fmt::format("{} is not reduced", name_of(dtype)));
  }
}

ncclRedOp_t nccl_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return ncclSum;
    case ReduceOp::max: return ncclMax;
    case ReduceOp::min: return ncclMin;
  }
  throw Error(ErrorKind::internal, "unknown reduction");
}

// What all groups of a rank share: its device, the stream that computes there, and pinned buffers that are used again.
class Rail {
 public:
  explicit Rail(int device)
      : device_(device), copies_(make_cuda_copies(device)), pinned_(copies_->staging(), Outgrown::kept) {
    use();
  }
  ~Rail() {
    if (ready_ != nullptr) std::ignore = cudaEventDestroy(ready_);
  }
  Rail(const Rail&) = delete;
  Rail& operator=(const Rail&) = delete;

  int device() const { return device_; }
  void use() const { CADRE_CUDA(cudaSetDevice(device_)); }

  cudaMemoryType type_of(const void* data) const {
    cudaPointerAttributes attributes = {};
    CADRE_CUDA(cudaPointerGetAttributes(&attributes, data));
    return attributes.type;
  }

  void follow(cudaStream_t compute) {
    compute_ = compute;
    if (ready_ == nullptr) CADRE_CUDA(cudaEventCreateWithFlags(&ready_, cudaEventDisableTiming));
  }
  // Operations enqueued on `stream` from here on run after those enqueued on the computing stream so far.
  void order_behind_compute(cudaStream_t stream) {
    if (compute_ == nullptr) return;
    CADRE_CUDA(cudaEventRecord(ready_, compute_));
    CADRE_CUDA(cudaStreamWaitEvent(stream, ready_, 0));
  }

  BufferPool& pinned() { return pinned_; }

 private:
  int device_;
  cudaStream_t compute_ = nullptr;
  cudaEvent_t ready_ = nullptr;  // a wait for it keeps to what was recorded before the wait
  std::shared_ptr<DeviceCopies> copies_;
  BufferPool pinned_;
};

// A communicator of NCCL and its stream. Each has one of its own, because ranks come to the exchanges of their lanes in
// orders of their own: in one stream, each could stand behind one that the other stands before.
class Group {
 public:
  explicit Group(ncclComm_t comm) : comm_(comm) {
    CADRE_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Group() {
    if (under_way_ > 0) abort();
    if (comm_ != nullptr) std::ignore = ncclCommDestroy(comm_);
    std::ignore = cudaStreamDestroy(stream_);
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  ncclComm_t comm() const {
    if (comm_ == nullptr) throw Error(ErrorKind::internal, "a communicator of NCCL that was aborted is used");
    return comm_;
  }
  cudaStream_t stream() const { return stream_; }
  // Ends what is under way, here and in the end on the peers: one of them may never come, and what computes on the device
  // may stand behind it.
  void abort() noexcept {
    if (comm_ != nullptr) std::ignore = ncclCommAbort(std::exchange(comm_, nullptr));
  }
  void begin() { ++under_way_; }
  void end() { --under_way_; }
  void check_alive() const {
    ncclResult_t status = ncclSuccess;
    CADRE_NCCL(ncclCommGetAsyncError(comm(), &status));
    check(status, "NCCL");
  }

 private:
  ncclComm_t comm_;
  cudaStream_t stream_ = nullptr;
  int under_way_ = 0;
};

// What was launched on the stream; done when the stream has passed its end.
class NcclOperation final : public PendingOperation {
 public:
  NcclOperation(std::shared_ptr<Rail> rail, std::shared_ptr<Group> group)
      : rail_(std::move(rail)), group_(std::move(group)) {
    rail_->use();
    CADRE_CUDA(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming));
    group_->begin();
  }
  ~NcclOperation() override { std::ignore = cudaEventDestroy(done_); }

  // Memory that the device reaches with what is at `data`.
  const void* readable(const std::byte* data, size_t bytes) {
    if (bytes == 0 || is_reached(data)) return data;
    std::byte* copy = pinned_.emplace_back(rail_->pinned().take(bytes)).data();
    std::memcpy(copy, data, bytes);
    return copy;
  }
  // Memory that the device reaches; what is in it when all is done goes to `data`.
  void* writable(std::byte* data, size_t bytes, const void* start = nullptr) {
    if (bytes == 0 || is_reached(data)) return data;
    std::byte* copy = pinned_.emplace_back(rail_->pinned().take(bytes)).data();
    if (start != nullptr) std::memcpy(copy, start, bytes);
    homes_.push_back({data, copy, bytes});
    return copy;
  }
  // When all operands are known.
  void before_launch() {
    if (is_ordered_) rail_->order_behind_compute(group_->stream());
  }
  void launched() { CADRE_CUDA(cudaEventRecord(done_, group_->stream())); }

  bool test() override {
    const cudaError_t status = cudaEventQuery(done_);
    if (status == cudaErrorNotReady) {
      group_->check_alive();
      return false;
    }
    CADRE_CUDA(status);
    for (const Home& home : homes_) std::memcpy(home.data, home.copy, home.bytes);
    for (Buffer& buffer : pinned_) rail_->pinned().give_back(std::move(buffer));
    group_->end();
    return true;
  }
  std::string missing() const override {
    return fmt::format("a rank of the group, or cuda:{} itself", rail_->device());
  }
  void abandon() noexcept override { group_->abort(); }

 private:
  bool is_reached(const void* data) {
    const cudaMemoryType type = rail_->type_of(data);
    const bool is_reached = type != cudaMemoryTypeUnregistered;
    is_ordered_ = is_ordered_ || is_reached;
    return is_reached;
  }

  struct Home {
    std::byte* data;
    const std::byte* copy;
    size_t bytes;
  };

  std::shared_ptr<Rail> rail_;
  std::shared_ptr<Group> group_;
  cudaEvent_t done_ = nullptr;
  bool is_ordered_ = false;  // behind what computes, which may write or read an operand
  std::vector<Buffer> pinned_;
  std::vector<Home> homes_;
};

class NcclTransport final : public ForwardingTransport {
 public:
  NcclTransport(std::unique_ptr<Transport> base, std::shared_ptr<Rail> rail, ncclComm_t comm)
      : ForwardingTransport(std::move(base)), rail_(std::move(rail)), group_(std::make_shared<Group>(comm)) {}

  std::string_view name() const override { return "nccl"; }
  std::string library() const override { return nccl_version() + " over " + base().library(); }

  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    auto operation = begin();
    int64_t rows_sent = 0;
    CADRE_NCCL(ncclGroupStart());
    for (int step = 0; step < size(); ++step) {
      const auto to = static_cast<size_t>((rank() + step) % size());
      const auto from = static_cast<size_t>((rank() - step + size()) % size());
      const size_t out_bytes = static_cast<size_t>(send.counts[to]) * row_bytes;
      const size_t in_bytes = static_cast<size_t>(receive.counts[from]) * row_bytes;
      if (step > 0) rows_sent += send.counts[to];
      if (out_bytes > 0) {
        const void* rows =
            operation->readable(send.base + send.offsets[to] * static_cast<int64_t>(row_bytes), out_bytes);
        CADRE_NCCL(ncclSend(rows, out_bytes, ncclInt8, static_cast<int>(to), group_->comm(), group_->stream()));
      }
      if (in_bytes > 0) {
        void* rows =
            operation->writable(receive.base + receive.offsets[from] * static_cast<int64_t>(row_bytes), in_bytes);
        CADRE_NCCL(ncclRecv(rows, in_bytes, ncclInt8, static_cast<int>(from), group_->comm(), group_->stream()));
      }
    }
    operation->before_launch();
    CADRE_NCCL(ncclGroupEnd());
    return launched(std::move(operation), fmt::format("all_to_all of rows of {} bytes", row_bytes),
                    rows_sent * static_cast<int64_t>(row_bytes));
  }

  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    if (mine.size() < kLargeBytes) return base().all_gather(mine, all);
    auto operation = begin();
    const void* from = operation->readable(mine.data(), mine.size());
    void* to = operation->writable(all.data(), all.size());
    operation->before_launch();
    CADRE_NCCL(ncclAllGather(from, to, mine.size(), ncclInt8, group_->comm(), group_->stream()));
    return launched(std::move(operation), fmt::format("all_gather of {} bytes a rank", mine.size()),
                    static_cast<int64_t>(mine.size()) * (size() - 1));
  }

  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    const size_t bytes = static_cast<size_t>(count) * size_of(dtype);
    const bool may_be_tensor = dtype == DType::f32;  // memory of the device, which no adapter of the host can register
    if (bytes < kLargeBytes && !may_be_tensor) return base().all_reduce(data, count, dtype, op);
    auto operation = begin();
    void* values = operation->writable(data, bytes, data);
    operation->before_launch();
    CADRE_NCCL(ncclAllReduce(values, values, static_cast<size_t>(count), nccl_type(dtype), nccl_op(op), group_->comm(),
                             group_->stream()));
    return launched(std::move(operation), fmt::format("all_reduce of {} {}", count, name_of(dtype)),
                    static_cast<int64_t>(bytes));
  }

  bool follow(void* queue) override {
    rail_->use();
    rail_->follow(static_cast<cudaStream_t>(queue));
    return true;
  }

  bool progresses_anywhere() const override { return false; }

  std::unique_ptr<Transport> split(int color, int key) override {
    std::unique_ptr<Transport> part = base().split(color, key);
    rail_->use();
    ncclComm_t comm = nullptr;
    CADRE_NCCL(ncclCommSplit(group_->comm(), color, key, &comm, nullptr));
    return std::make_unique<NcclTransport>(std::move(part), rail_, comm);
  }

 private:
  std::unique_ptr<NcclOperation> begin() { return std::make_unique<NcclOperation>(rail_, group_); }

  Request launched(std::unique_ptr<NcclOperation> operation, const std::string& what, int64_t bytes) {
    operation->launched();
    return {job(), fmt::format("{} over NCCL (rank {} of {})", what, rank(), size()), std::move(operation), bytes};
  }

  std::shared_ptr<Rail> rail_;
  std::shared_ptr<Group> group_;
};

}  // namespace

std::string nccl_version() {
  int version = 0;
  CADRE_NCCL(ncclGetVersion(&version));
  return fmt::format("NCCL {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

std::unique_ptr<Transport> make_nccl_transport(std::unique_ptr<Transport> base, int device) {
  auto rail = std::make_shared<Rail>(device);
  const auto id = std::make_shared<ncclUniqueId>();
  if (base->rank() == 0) CADRE_NCCL(ncclGetUniqueId(id.get()));
  Request known = base->broadcast(std::as_writable_bytes(std::span(id.get(), 1)), 0);
  known.keep(id);
  wait(known);  // so that NCCL, which has no deadline, is entered by all or by none
  ncclComm_t comm = nullptr;
  CADRE_NCCL(ncclCommInitRank(&comm, base->size(), *id, base->rank()));
  return std::make_unique<NcclTransport>(std::move(base), std::move(rail), comm);
}

}  // namespace cadre
