// SPDX-License-Identifier: Apache-2.0
// Packs rows of f32 for an exchange on a Machine (call.hpp), in the order of its launches.
#pragma once

#include <fmt/format.h>

#include <memory>
#include <utility>

#include "comm/wire/row_codec.hpp"
#include "layers/kernels/gpu/call.hpp"
#include "layers/kernels/gpu/wire.hpp"

namespace cadre::gpu {

template <class Machine>
class DeviceCodec final : public RowCodec {
 public:
  explicit DeviceCodec(std::shared_ptr<Machine> machine) : machine_(std::move(machine)) {}

  void encode(const RowFormat& format, const Elements& rows, int64_t count, std::byte* wire) const override {
    check(format);
    if (count == 0) return;
    Call<Machine> call(*machine_);
    const PickedRows from = call.rows(all(rows, format.dtype, format.width), rows.index, count);
    std::byte* to = call.template out<std::byte>(bytes_at(wire, count, format.wire_bytes()));
    switch (format.wire) {
      case Wire::same: copy(call, from, reinterpret_cast<float*>(to), count, format.width); break;
      case Wire::bf16: call.blocks(count, EncodeBf16{from, reinterpret_cast<bf16*>(to), format.width}); break;
      case Wire::fp8: call.blocks(count * fp8(format).tiles(), EncodeFp8{from, to, fp8(format)}); break;
    }
    call.finish();
  }

  void decode(const RowFormat& format, const Elements& wire, int64_t count, std::byte* values) const override {
    check(format);
    if (count == 0) return;
    Call<Machine> call(*machine_);
    const auto wire_bytes = static_cast<int64_t>(format.wire_bytes());
    const PickedRows from = call.rows(all(wire, DType::u8, wire_bytes), wire.index, count);
    auto* to = call.template out<float>(bytes_at(values, count, format.row_bytes()));
    switch (format.wire) {
      case Wire::same: copy(call, from, to, count, format.width); break;
      case Wire::bf16: call.blocks(count, DecodeBf16{from, to, format.width}); break;
      case Wire::fp8: call.blocks(count, DecodeFp8{from, to, fp8(format)}); break;
    }
    call.finish();
  }

  Memory& memory() const override { return machine_->message_memory(); }
  Request done() const override { return machine_->launched(); }

 private:
  static void check(const RowFormat& format) {
    CADRE_CHECK(format.dtype == DType::f32, fmt::format("a device packs no rows of {}", name_of(format.dtype)));
  }
  static Rows all(const Elements& elements, DType dtype, int64_t width) {
    return {elements.base, static_cast<int64_t>(elements.stride), dtype, width};
  }
  static Tensor bytes_at(std::byte* data, int64_t count, size_t row_bytes) {
    return {data, DType::u8, {count * static_cast<int64_t>(row_bytes)}};
  }
  static Fp8Row fp8(const RowFormat& format) {
    return {format.width, static_cast<int64_t>(format.wire_bytes()),
            static_cast<int64_t>(fp8_scales_offset(format.width))};
  }
  static void copy(Call<Machine>& call, const PickedRows& from, float* to, int64_t count, int64_t width) {
    call.blocks(count, GatherRows{from, nullptr, to, width});
  }

  std::shared_ptr<Machine> machine_;
};

}  // namespace cadre::gpu
