// SPDX-License-Identifier: Apache-2.0
#include "layers/tensor/arena.hpp"

#include <algorithm>
#include <cstring>

namespace cadre {
namespace {

constexpr size_t kBlockBytes = size_t{8} << 20;

}  // namespace

void Arena::reserve(size_t bytes) {
  CADRE_ASSERT(used_bytes_ == 0);
  if (!is_dry_run() && blocks_.empty()) add_block(bytes);
}

void Arena::lend(std::span<std::byte> memory) {
  CADRE_ASSERT(used_bytes_ == 0 && blocks_.empty());
  blocks_.push_back({memory, Buffer()});
}

void Arena::add_block(size_t bytes) {
  Buffer buffer(bytes, *memory_);
  const std::span<std::byte> memory = buffer.span();
  blocks_.push_back({memory, std::move(buffer)});
}

Tensor Arena::take(std::string_view label, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor shaped(nullptr, dtype, shape);
  const size_t bytes = whole_cache_lines(shaped.bytes());
  used_bytes_ += bytes;
  if (is_dry_run()) {
    lines_.push_back({std::string(label), bytes});
    if (used_bytes_ > peak_bytes_) note_peak();
    return shaped;
  }
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  std::byte* data = carve(bytes);
  if (poison_ && bytes > 0) std::memset(data, 0xff, bytes);
  return Tensor(data, dtype, shape);
}

std::byte* Arena::carve(size_t bytes) {
  while (block_ < blocks_.size() && offset_ + bytes > blocks_[block_].memory.size()) {
    ++block_;
    offset_ = 0;
  }
  if (block_ == blocks_.size()) add_block(std::max(bytes, kBlockBytes));
  std::byte* data = blocks_[block_].memory.data() + offset_;
  offset_ += bytes;
  return data;
}

Arena::Mark Arena::mark() const { return {block_, offset_, used_bytes_, lines_.size()}; }

void Arena::release(const Mark& mark) {
  block_ = mark.block;
  offset_ = mark.offset;
  used_bytes_ = mark.used_bytes;
  lines_.resize(mark.num_lines);
}

void Arena::note_peak() {
  peak_bytes_ = used_bytes_;
  peak_table_.clear();
  for (const Line& line : lines_) peak_table_[line.label] += line.bytes;
}

}  // namespace cadre
