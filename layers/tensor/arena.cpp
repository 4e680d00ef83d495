// SPDX-License-Identifier: Apache-2.0
#include "layers/tensor/arena.hpp"

#include <algorithm>
#include <utility>

namespace cadre {
namespace {

constexpr size_t kBlockBytes = size_t{8} << 20;

}  // namespace

void Arena::reserve(size_t bytes) {
  CADRE_ASSERT(used_bytes_ == 0);
  auto& [main, host, result] = *blocks_;
  if (is_dry_run() || !main.list.empty()) return;
  main.add(bytes);
  if (result.memory != main.memory) result.add(kBlockBytes);
}

void Arena::lend(std::span<std::byte> memory) {
  CADRE_ASSERT(used_bytes_ == 0 && blocks_->main.list.empty());
  blocks_->main.list.push_back({memory, Buffer()});
}

void Arena::Blocks::add(size_t bytes) {
  Buffer buffer(bytes, *memory);
  const std::span<std::byte> whole = buffer.span();
  list.push_back({whole, std::move(buffer)});
}

std::byte* Arena::Blocks::carve(size_t bytes) {
  while (place.block < list.size() && place.offset + bytes > list[place.block].memory.size()) {
    ++place.block;
    place.offset = 0;
  }
  if (place.block == list.size()) add(std::max(bytes, kBlockBytes));
  std::byte* data = list[place.block].memory.data() + place.offset;
  place.offset += bytes;
  return data;
}

void Arena::set_work(Arena* work) {
  CADRE_ASSERT(!inside_work_);
  work_ = work;
}

Tensor Arena::take(std::string_view label, DType dtype, std::initializer_list<int64_t> shape) {
  if (inside_work_) return work_->take(label, dtype, shape);
  return take_from(blocks_->main, label, dtype, shape);
}

Tensor Arena::take_host(std::string_view label, DType dtype, std::initializer_list<int64_t> shape) {
  if (inside_work_) return work_->take_host(label, dtype, shape);
  auto& [main, host, result] = *blocks_;
  return take_from(main.memory == &host_memory() ? main : host, label, dtype, shape);
}

Tensor Arena::take_result(std::string_view label, DType dtype, std::initializer_list<int64_t> shape) {
  if (inside_work_) return work_->take_result(label, dtype, shape);
  auto& [main, host, result] = *blocks_;
  return take_from(main.memory == result.memory ? main : result, label, dtype, shape);
}

Tensor Arena::take_from(Blocks& blocks, std::string_view label, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor shaped(nullptr, dtype, shape);
  const size_t bytes = whole_cache_lines(shaped.bytes());
  used_bytes_ += bytes;
  if (is_dry_run()) {
    lines_.push_back({std::string(label), bytes});
    at_peak_ = at_peak_ || used_bytes_ > peak_bytes_;
    peak_bytes_ = std::max(peak_bytes_, used_bytes_);
    return shaped;
  }
  peak_bytes_ = std::max(peak_bytes_, used_bytes_);
  std::byte* data = blocks.carve(bytes);
  if (poison_) blocks.memory->fill(data, std::byte{0xff}, bytes);
  return Tensor(data, dtype, shape);
}

Arena::Mark Arena::mark() const {
  if (inside_work_) return work_->mark();
  return {blocks_->main.place, blocks_->host.place, blocks_->result.place, used_bytes_, lines_.size()};
}

void Arena::release(const Mark& mark) {
  if (inside_work_) return work_->release(mark);
  blocks_->main.place = mark.place;
  blocks_->host.place = mark.host_place;
  blocks_->result.place = mark.result_place;
  if (at_peak_ && mark.used_bytes < used_bytes_) {
    peak_table_ = bytes_by_label();
    at_peak_ = false;
  }
  used_bytes_ = mark.used_bytes;
  lines_.resize(mark.num_lines);
}

std::map<std::string, size_t> Arena::peak_table() const { return at_peak_ ? bytes_by_label() : peak_table_; }

std::map<std::string, size_t> Arena::bytes_by_label() const {
  std::map<std::string, size_t> bytes;
  for (const Line& line : lines_) bytes[line.label] += line.bytes;
  return bytes;
}

}  // namespace cadre
