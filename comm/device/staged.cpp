// SPDX-License-Identifier: Apache-2.0
#include "comm/device/staged.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "comm/transport/forwarding.hpp"

namespace cadre {
namespace {

// What all groups of a rank share.
struct Stage {
  std::shared_ptr<DeviceCopies> device;  // outlives the buffers
  BufferPool buffers{device->staging(), Outgrown::kept};
};

size_t bytes_of(std::span<const int64_t> counts, std::span<const int64_t> offsets, size_t row_bytes) {
  int64_t rows = 0;
  for (size_t peer = 0; peer < counts.size(); ++peer) rows = std::max(rows, offsets[peer] + counts[peer]);
  return static_cast<size_t>(rows) * row_bytes;
}

// An operation of the transport beneath, and the copies around it.
class StagedOperation final : public PendingOperation {
 public:
  explicit StagedOperation(std::shared_ptr<Stage> stage) : stage_(std::move(stage)) {}

  // What is at `data`, where the transport beneath may read it.
  const std::byte* readable(const std::byte* data, size_t bytes) {
    if (bytes == 0 || !stage_->device->is_device_memory(data)) return data;
    std::byte* copy = staged(bytes);
    read(copy, data, bytes);
    return copy;
  }
  // Where it may write what is to be at `data`; with what is there, where not all of it will be written.
  std::byte* writable(std::byte* data, size_t bytes, bool read_first) {
    if (bytes == 0 || !stage_->device->is_device_memory(data)) return data;
    std::byte* copy = staged(bytes);
    if (read_first) read(copy, data, bytes);
    homes_.push_back({data, copy, bytes});
    return copy;
  }
  // The same for rows of peers; what lies between them stays.
  RaggedRows writable_rows(const RaggedRows& rows, size_t row_bytes) {
    const size_t bytes = bytes_of(rows.counts, rows.offsets, row_bytes);
    if (bytes == 0 || !stage_->device->is_device_memory(rows.base)) return rows;
    std::byte* copy = staged(bytes);
    for (size_t peer = 0; peer < rows.counts.size(); ++peer) {
      const size_t first = static_cast<size_t>(rows.offsets[peer]) * row_bytes;
      const size_t here = static_cast<size_t>(rows.counts[peer]) * row_bytes;
      if (here > 0) homes_.push_back({rows.base + first, copy + first, here});
    }
    return {copy, rows.counts, rows.offsets};
  }
  bool is_staged() const { return !buffers_.empty(); }
  void set_inner(Request inner) { inner_ = std::move(inner); }
  Request& inner() { return inner_; }

  bool test() override {
    if (!inner_.test()) return false;
    for (const Home& home : homes_) stage_->device->to_device(home.data, home.copy, home.bytes);
    if (!homes_.empty()) stage_->device->finish();
    for (Buffer& buffer : buffers_) stage_->buffers.give_back(std::move(buffer));
    return true;
  }
  std::string missing() const override { return inner_.missing(); }

 private:
  struct Home {
    std::byte* data;
    const std::byte* copy;
    size_t bytes;
  };

  void read(std::byte* copy, const std::byte* data, size_t bytes) {
    stage_->device->to_host(copy, data, bytes);
    stage_->device->finish();
  }
  std::byte* staged(size_t bytes) { return buffers_.emplace_back(stage_->buffers.take(bytes)).data(); }

  std::shared_ptr<Stage> stage_;
  std::vector<Buffer> buffers_;
  std::vector<Home> homes_;
  Request inner_;
};

class StagedTransport final : public ForwardingTransport {
 public:
  StagedTransport(std::unique_ptr<Transport> base, std::shared_ptr<Stage> stage)
      : ForwardingTransport(std::move(base)), stage_(std::move(stage)) {}

  std::string_view name() const override { return base().name(); }
  std::string library() const override { return base().library() + ", from and to devices through the host"; }

  Request send(std::span<const std::byte> bytes, int peer, int tag) override {
    auto operation = begin();
    const std::byte* from = operation->readable(bytes.data(), bytes.size());
    operation->set_inner(base().send({from, bytes.size()}, peer, tag));
    return staged(std::move(operation));
  }
  Request receive(std::span<std::byte> bytes, int peer, int tag) override {
    auto operation = begin();
    std::byte* to = operation->writable(bytes.data(), bytes.size(), /*read_first=*/false);
    operation->set_inner(base().receive({to, bytes.size()}, peer, tag));
    return staged(std::move(operation));
  }
  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    auto operation = begin();
    const std::byte* from = operation->readable(send.data(), send.size());
    std::byte* to = operation->writable(receive.data(), receive.size(), /*read_first=*/false);
    operation->set_inner(base().all_to_all({from, send.size()}, {to, receive.size()}));
    return staged(std::move(operation));
  }
  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    auto operation = begin();
    const std::byte* from = operation->readable(send.base, bytes_of(send.counts, send.offsets, row_bytes));
    const RaggedRows to = operation->writable_rows(receive, row_bytes);
    operation->set_inner(base().all_to_all_rows({from, send.counts, send.offsets}, to, row_bytes));
    return staged(std::move(operation));
  }
  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    auto operation = begin();
    const std::byte* from = operation->readable(mine.data(), mine.size());
    std::byte* to = operation->writable(all.data(), all.size(), /*read_first=*/false);
    operation->set_inner(base().all_gather({from, mine.size()}, {to, all.size()}));
    return staged(std::move(operation));
  }
  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    auto operation = begin();
    std::byte* values = operation->writable(data, static_cast<size_t>(count) * size_of(dtype), /*read_first=*/true);
    operation->set_inner(base().all_reduce(values, count, dtype, op));
    return staged(std::move(operation));
  }
  Request broadcast(std::span<std::byte> bytes, int root) override {
    auto operation = begin();
    std::byte* values = operation->writable(bytes.data(), bytes.size(), /*read_first=*/rank() == root);
    operation->set_inner(base().broadcast({values, bytes.size()}, root));
    return staged(std::move(operation));
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    return std::make_unique<StagedTransport>(base().split(color, key), stage_);
  }

 private:
  std::unique_ptr<StagedOperation> begin() { return std::make_unique<StagedOperation>(stage_); }

  // The operation itself where nothing was copied.
  Request staged(std::unique_ptr<StagedOperation> operation) {
    if (!operation->is_staged()) return std::move(operation->inner());
    std::string what = operation->inner().what();
    Request request(job(), std::move(what), std::move(operation));
    request.hide();  // the operation beneath shows
    return request;
  }

  std::shared_ptr<Stage> stage_;
};

}  // namespace

std::unique_ptr<Transport> make_staged_transport(std::unique_ptr<Transport> base,
                                                 std::shared_ptr<DeviceCopies> device) {
  return std::make_unique<StagedTransport>(std::move(base), std::make_shared<Stage>(Stage{std::move(device)}));
}

}  // namespace cadre
