// SPDX-License-Identifier: Apache-2.0
// Carves tensors from a few large buffers, last in, first out. A dry run hands out tensors without memory and counts,
// so the memory of a step is known by running the code that will use it, before anything is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/base/buffer.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {

class Arena {
 public:
  enum class Mode { real, dry_run };

  // `poison` fills every tensor with NaN when it is handed out, so that an element nobody wrote shows.
  explicit Arena(Mode mode = Mode::real, bool poison = false, Memory& memory = host_memory())
      : mode_(mode),
        poison_(poison),
        blocks_(std::make_shared<AllBlocks>(Blocks(memory), Blocks(host_memory()), Blocks(memory.for_results()))) {}

  bool is_dry_run() const { return mode_ == Mode::dry_run; }

  // Before the first take: one buffer for about `bytes`, so that nothing is lost between buffers. What it cannot hold goes
  // to further ones; what is never written costs address space and no memory.
  void reserve(size_t bytes);
  // The same with memory of someone else, which must outlive the arena.
  void lend(std::span<std::byte> memory);
  // Another arena, of which tensors are taken inside a WorkScope; it outlives the arena or the next call. nullptr: none. Not inside
  // a WorkScope.
  void set_work(Arena* work);
  // Keeps the memory of all tensors that were taken, for an operation under way. Lent memory is kept by its owner.
  std::shared_ptr<const void> owner() const { return inside_work_ ? work_->owner() : blocks_; }

  // `label` names the line of the memory table that the bytes are counted under. Aligned to 64 bytes, contents
  // undefined.
  Tensor take(std::string_view label, DType dtype, std::initializer_list<int64_t> shape);

  // The same for a tensor that the host writes while a device is at work on others: in memory of the host, of which kernels
  // of the device take a copy when they are called.
  Tensor take_host(std::string_view label, DType dtype, std::initializer_list<int64_t> shape);

  // The same for a tensor that both use, kernels and the host: in memory that both reach, over a bus from the device.
  Tensor take_result(std::string_view label, DType dtype, std::initializer_list<int64_t> shape);

  // Where the next tensor is carved from.
  struct Place {
    size_t block = 0;
    size_t offset = 0;  // first free byte in it
  };

  // Everything taken after `mark` is given back by `release(mark)`.
  struct Mark {
    Place place;
    Place host_place;
    Place result_place;
    size_t used_bytes = 0;
    size_t num_lines = 0;
  };
  Mark mark() const;
  void release(const Mark& mark);

  size_t peak_bytes() const { return peak_bytes_; }

  // Dry run only: bytes by label at the moment of the peak.
  std::map<std::string, size_t> peak_table() const;

 private:
  friend class WorkScope;

  struct Line {
    std::string label;
    size_t bytes;
  };

  struct Block {
    std::span<std::byte> memory;
    Buffer owned;  // empty where the memory is lent
  };

  struct Blocks {
    explicit Blocks(Memory& of) : memory(&of) {}
    std::byte* carve(size_t bytes);
    void add(size_t bytes);

    Memory* memory;
    std::vector<Block> list;
    Place place;
  };
  struct AllBlocks {
    Blocks main;
    Blocks host;  // these two: none where the main ones are of that memory
    Blocks result;
  };

  Tensor take_from(Blocks& blocks, std::string_view label, DType dtype, std::initializer_list<int64_t> shape);
  std::map<std::string, size_t> bytes_by_label() const;

  Mode mode_;
  bool poison_;
  Arena* work_ = nullptr;
  bool inside_work_ = false;
  std::shared_ptr<AllBlocks> blocks_;
  size_t used_bytes_ = 0;
  size_t peak_bytes_ = 0;
  std::vector<Line> lines_;                   // dry run only
  bool at_peak_ = false;                      // nothing was given back since the peak was reached; dry run only
  std::map<std::string, size_t> peak_table_;  // of the last peak from which something was given back
};

// Gives back, at the end of a C++ scope, what was taken inside it.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.release(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

// An ArenaScope whose tensors come from the arena for work, where there is one: micro-batches that keep tensors of their own take
// turns with that memory. Scopes of either kind may lie inside.
class WorkScope {
 public:
  explicit WorkScope(Arena& arena) : entered_(arena, arena.work_ != nullptr || arena.inside_work_), scope_(arena) {}

 private:
  struct Entered {
    Entered(Arena& of, bool inside) : arena(of), before(std::exchange(of.inside_work_, inside)) {}
    ~Entered() { arena.inside_work_ = before; }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

    Arena& arena;
    bool before;
  };

  Entered entered_;
  ArenaScope scope_;
};

}  // namespace cadre
