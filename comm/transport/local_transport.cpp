// SPDX-License-Identifier: Apache-2.0
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/job/wait.hpp"
#include "comm/transport/local.hpp"

namespace cadre {
namespace {

// What the ranks of one group share.
struct Group {
  Group(std::vector<int> world_ranks, int size_of_world, RankFailed failed_flag)
      : world_rank(std::move(world_ranks)),
        world_size(size_of_world),
        mailboxes(world_rank.size()),
        failed(std::move(failed_flag)) {}

  std::vector<int> world_rank;  // of each rank of this group: what messages name
  int world_size;
  std::vector<Mailbox> mailboxes;
  RankFailed failed;

  // split: each rank posts (color, key) and its round's last one makes the new groups.
  struct Split {
    std::vector<std::pair<int, int>> color_key;
    int num_posted = 0;
    int num_taken = 0;
    std::map<int, std::shared_ptr<Group>> groups;
  };
  std::mutex split_mutex;
  std::condition_variable split_changed;
  Split split;
};

Buffer copy_of(std::span<const std::byte> bytes) {
  Buffer copy(bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

// Zeros that take no memory before they are touched.
std::shared_ptr<std::byte> map_zeros(size_t bytes) {
  void* const pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) {
    throw OutOfMemory(fmt::format("cannot map {} bytes of memory that ranks share", bytes),
                      "lower the batch, the sequence length or the model size, or use more ranks");
  }
  static_cast<void>(madvise(pages, bytes, MADV_HUGEPAGE));  // advice only
  return {static_cast<std::byte*>(pages), [bytes](std::byte* data) { munmap(data, bytes); }};
}

class LocalSharedMemory : public SharedMemory {
 public:
  LocalSharedMemory(std::shared_ptr<std::byte> pages, size_t bytes_per_rank)
      : SharedMemory(pages.get(), bytes_per_rank), pages_(std::move(pages)) {}

 private:
  std::shared_ptr<std::byte> pages_;
};

// Receives still to be matched, and a last action once all of them are in.
class ReceivesOperation : public PendingOperation {
 public:
  ReceivesOperation(std::shared_ptr<Group> group, int rank, int tag)
      : group_(std::move(group)), rank_(rank), tag_(tag) {}

  void add(int source, std::span<std::byte> into) {
    waiting_.push_back({group_->mailboxes[static_cast<size_t>(rank_)].receive(source, tag_), into});
  }
  void then(std::function<void()> last) { last_ = std::move(last); }
  void own(Buffer buffer) { buffers_.push_back(std::move(buffer)); }

  bool outlives_job() const override { return false; }  // senders hold a copy of nothing that it owns
  bool test() override {
    CADRE_CHECK_PEER(!*group_->failed, "another rank of this process failed");
    std::erase_if(waiting_, [this](const Waiting& wait) { return arrived(wait); });
    if (!waiting_.empty()) return false;
    if (last_) last_();
    last_ = nullptr;
    return true;
  }

  std::string missing() const override {
    std::string text;
    for (const Waiting& wait : waiting_) {
      if (!text.empty()) text += ", ";
      text += fmt::format("rank {} (expected {} bytes, received none)", group_->world_rank[wait.receive->source],
                          wait.into.size());
    }
    return text;
  }

 private:
  struct Waiting {
    std::shared_ptr<Mailbox::Receive> receive;
    std::span<std::byte> into;
  };

  bool arrived(const Waiting& wait) {
    if (!wait.receive->arrived.load(std::memory_order_acquire)) return false;
    const Buffer& bytes = wait.receive->bytes;
    CADRE_CHECK_PEER(bytes.bytes() == wait.into.size(),
                     fmt::format("expected {} bytes from rank {} and received {}", wait.into.size(),
                                 group_->world_rank[wait.receive->source], bytes.bytes()));
    if (!wait.into.empty()) std::memcpy(wait.into.data(), bytes.data(), wait.into.size());
    return true;
  }

  std::shared_ptr<Group> group_;
  int rank_;
  int tag_;
  std::vector<Waiting> waiting_;
  std::function<void()> last_;
  std::vector<Buffer> buffers_;
};

template <class T>
void reduce_block(T* into, const T* from, int64_t count, ReduceOp op) {
  for (int64_t i = 0; i < count; ++i) {
    switch (op) {
      case ReduceOp::sum: into[i] += from[i]; break;
      case ReduceOp::max: into[i] = std::max(into[i], from[i]); break;
      case ReduceOp::min: into[i] = std::min(into[i], from[i]); break;
    }
  }
}

void reduce_bytes(std::byte* into, const std::byte* from, int64_t count, DType dtype, ReduceOp op) {
  const auto reduce_as = [&]<class T>(T /*type*/) {
    reduce_block(reinterpret_cast<T*>(into), reinterpret_cast<const T*>(from), count, op);
  };
  switch (dtype) {
    case DType::f32: return reduce_as(float{});
    case DType::f64: return reduce_as(double{});
    case DType::i32: return reduce_as(int32_t{});
    case DType::i64: return reduce_as(int64_t{});
    default: throw Error(ErrorKind::internal, fmt::format("cannot reduce {}", name_of(dtype)));
  }
}

class LocalTransport : public Transport {
 public:
  LocalTransport(JobContext& job, std::shared_ptr<Group> group, int rank, int size)
      : Transport(job), group_(std::move(group)), rank_(rank), size_(size) {}

  std::string_view name() const override { return "local"; }
  std::string library() const override { return "threads of one process"; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  int world_rank(int peer) const override { return group_->world_rank[peer]; }

  Request send(std::span<const std::byte> bytes, int peer, int tag) override {
    post(peer, tag, bytes);
    return make_request(fmt::format("send of {} bytes to rank {}, tag {}", bytes.size(), group_->world_rank[peer], tag),
                        std::make_unique<ReceivesOperation>(group_, rank_, tag));  // that waits for nothing
  }

  Request receive(std::span<std::byte> bytes, int peer, int tag) override {
    auto operation = std::make_unique<ReceivesOperation>(group_, rank_, tag);
    operation->add(peer, bytes);
    return make_request(
        fmt::format("receive of {} bytes from rank {}, tag {}", bytes.size(), group_->world_rank[peer], tag),
        std::move(operation));
  }

  Request all_to_all(std::span<const std::byte> send, std::span<std::byte> receive) override {
    const size_t block = send.size() / static_cast<size_t>(size_);
    CADRE_CHECK(send.size() == receive.size() && block * static_cast<size_t>(size_) == send.size(),
                fmt::format("all_to_all of {} bytes over {} ranks", send.size(), size_));
    auto operation = collective();
    for (int peer = 0; peer < size_; ++peer) {
      const size_t offset = static_cast<size_t>(peer) * block;
      post(peer, tag_now_, send.subspan(offset, block));
      operation->add(peer, receive.subspan(offset, block));
    }
    return make_request(fmt::format("all_to_all of {} bytes a rank", block), std::move(operation));
  }

  Request all_to_all_rows(const ConstRaggedRows& send, const RaggedRows& receive, size_t row_bytes) override {
    auto operation = collective();
    for (int peer = 0; peer < size_; ++peer) {
      const size_t send_bytes = static_cast<size_t>(send.counts[peer]) * row_bytes;
      const size_t receive_bytes = static_cast<size_t>(receive.counts[peer]) * row_bytes;
      if (send_bytes > 0) post(peer, tag_now_, {send.base + send.offsets[peer] * row_bytes, send_bytes});
      if (receive_bytes > 0) {
        operation->add(peer, {receive.base + receive.offsets[peer] * row_bytes, receive_bytes});
      }
    }
    return make_request(fmt::format("all_to_all of rows of {} bytes", row_bytes), std::move(operation));
  }

  Request all_gather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    auto operation = collective();
    for (int peer = 0; peer < size_; ++peer) {
      post(peer, tag_now_, mine);
      operation->add(peer, all.subspan(static_cast<size_t>(peer) * mine.size(), mine.size()));
    }
    return make_request(fmt::format("all_gather of {} bytes a rank", mine.size()), std::move(operation));
  }

  // Every rank sends its vector to every other and adds them in rank order, so all ranks get the same bits.
  Request all_reduce(std::byte* data, int64_t count, DType dtype, ReduceOp op) override {
    const size_t bytes = static_cast<size_t>(count) * size_of(dtype);
    auto operation = collective();
    Buffer gathered(bytes * static_cast<size_t>(size_));
    for (int peer = 0; peer < size_; ++peer) {
      post(peer, tag_now_, {data, bytes});
      operation->add(peer, gathered.span().subspan(static_cast<size_t>(peer) * bytes, bytes));
    }
    operation->then([data, count, dtype, op, bytes, size = size_, from = gathered.data()] {
      if (bytes == 0) return;
      std::memcpy(data, from, bytes);
      for (int peer = 1; peer < size; ++peer) {
        reduce_bytes(data, from + static_cast<size_t>(peer) * bytes, count, dtype, op);
      }
    });
    operation->own(std::move(gathered));
    return make_request(fmt::format("all_reduce of {} {}", count, name_of(dtype)), std::move(operation));
  }

  Request broadcast(std::span<std::byte> bytes, int root) override {
    auto operation = collective();
    if (rank_ == root) {
      for (int peer = 0; peer < size_; ++peer) {
        if (peer != root) post(peer, tag_now_, bytes);
      }
    } else {
      operation->add(root, bytes);
    }
    return make_request(fmt::format("broadcast of {} bytes from rank {}", bytes.size(), group_->world_rank[root]),
                        std::move(operation));
  }

  Request barrier() override {
    auto operation = collective();
    for (int peer = 0; peer < size_; ++peer) {
      post(peer, tag_now_, {});
      operation->add(peer, {});
    }
    return make_request("barrier", std::move(operation));
  }

  void progress() override { CADRE_CHECK_PEER(!*group_->failed, "another rank of this process failed"); }
  bool progresses_anywhere() const override { return false; }

  int host_leader() override { return 0; }

  // Rank 0 makes the memory and lends its handle to the others until all have a copy.
  std::unique_ptr<SharedMemory> share(size_t bytes) override {
    std::shared_ptr<std::byte> pages;
    std::shared_ptr<std::byte>* lent = &pages;
    if (rank_ == 0) pages = map_zeros(std::max<size_t>(1, bytes * static_cast<size_t>(size_)));
    Request lending = broadcast(std::as_writable_bytes(std::span(&lent, 1)), 0);
    wait(lending);
    if (rank_ != 0) pages = *lent;
    Request all_have_it = barrier();
    wait(all_have_it);
    return std::make_unique<LocalSharedMemory>(std::move(pages), bytes);
  }

  std::unique_ptr<Transport> split(int color, int key) override {
    std::unique_lock lock(group_->split_mutex);
    Group::Split& split = group_->split;
    const Deadline deadline(&job(), job().deadline_seconds());
    const auto wait_for = [&](auto&& condition) {
      while (!condition()) {
        CADRE_CHECK_PEER(!*group_->failed, "another rank of this process failed");
        deadline.check(
            {}, [this] { return fmt::format("splitting a group (rank {})", group_->world_rank[rank_]); },
            [&] { return fmt::format("{} of its {} ranks", size_ - split.num_posted, size_); });
        group_->split_changed.wait_for(lock, std::chrono::milliseconds(50));
      }
    };
    wait_for([&] { return split.num_taken == 0; });  // a split before this one is over
    split.color_key.resize(static_cast<size_t>(size_));
    split.color_key[static_cast<size_t>(rank_)] = {color, key};
    if (++split.num_posted == size_) group_->split_changed.notify_all();
    wait_for([&] { return split.num_posted == size_; });

    std::vector<std::pair<int, int>> members;  // (key, old rank)
    for (int peer = 0; peer < size_; ++peer) {
      const auto [peer_color, peer_key] = split.color_key[static_cast<size_t>(peer)];
      if (peer_color == color) members.emplace_back(peer_key, peer);
    }
    std::sort(members.begin(), members.end());
    const auto me = std::find(members.begin(), members.end(), std::pair{key, rank_});
    std::shared_ptr<Group>& part = split.groups[color];
    const int part_size = static_cast<int>(members.size());
    if (part == nullptr) {
      std::vector<int> world_ranks;
      for (const auto& [member_key, member] : members) world_ranks.push_back(group_->world_rank[member]);
      part = std::make_shared<Group>(std::move(world_ranks), group_->world_size, group_->failed);
    }
    auto transport = std::make_unique<LocalTransport>(job(), part, static_cast<int>(me - members.begin()), part_size);

    if (++split.num_taken == size_) {
      split = {};
      group_->split_changed.notify_all();
    }
    return transport;
  }

 private:
  // Collectives of one group take tags above those of callers, one each, in the order all ranks start them.
  static constexpr int kFirstCollectiveTag = 32768;

  std::unique_ptr<ReceivesOperation> collective() {
    tag_now_ = kFirstCollectiveTag + static_cast<int>(num_collectives_++ % (1U << 30));
    return std::make_unique<ReceivesOperation>(group_, rank_, tag_now_);
  }

  void post(int peer, int tag, std::span<const std::byte> bytes) {
    if (peer != rank_) bytes_posted_ += static_cast<int64_t>(bytes.size());
    group_->mailboxes[static_cast<size_t>(peer)].put(rank_, tag, copy_of(bytes));
  }

  Request make_request(const std::string& what, std::unique_ptr<ReceivesOperation> operation) {
    return {job(), fmt::format("{} (rank {} of {})", what, group_->world_rank[rank_], group_->world_size),
            std::move(operation), std::exchange(bytes_posted_, 0)};
  }

  std::shared_ptr<Group> group_;
  int rank_;
  int size_;
  int64_t bytes_posted_ = 0;  // since the last request
  int tag_now_ = 0;
  uint64_t num_collectives_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Transport>> make_local_world(std::span<const std::unique_ptr<JobContext>> jobs,
                                                         RankFailed failed) {
  const auto num_ranks = static_cast<int>(jobs.size());
  std::vector<int> world_ranks(static_cast<size_t>(num_ranks));
  std::iota(world_ranks.begin(), world_ranks.end(), 0);
  const auto world = std::make_shared<Group>(std::move(world_ranks), num_ranks, std::move(failed));
  std::vector<std::unique_ptr<Transport>> transports;
  for (int rank = 0; rank < num_ranks; ++rank) {
    transports.push_back(std::make_unique<LocalTransport>(*jobs[static_cast<size_t>(rank)], world, rank, num_ranks));
  }
  return transports;
}

}  // namespace cadre
