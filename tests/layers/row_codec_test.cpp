// SPDX-License-Identifier: Apache-2.0
// Rows that a device packs for the wire, and unpacks: the bits of the host's codec, wherever the rows lie.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/support/fast_kernels.hpp"

namespace cadre::row_codec_test {
namespace {

constexpr Wire kWires[] = {Wire::same, Wire::bf16, Wire::fp8};
constexpr int64_t kNumRows = 9;

class RowCodecs : public test::FastKernels {
 protected:
  void SetUp() override {
    FastKernels::SetUp();
    if (!IsSkipped() && fast->device_codec() == nullptr) GTEST_SKIP() << fast->name() << " leaves rows to the host";
  }

  using Bytes = std::vector<std::byte>;

  // Of a byte that no codec writes by chance.
  static Bytes filled(size_t bytes) { return Bytes(bytes, std::byte{0xa5}); }

  // To memory that only kernels and transports reach, and back.
  Buffer on_device(const Bytes& bytes) {
    Buffer buffer(bytes.size() + 1, fast->device_codec()->memory());
    fast->copy(tensor_of(const_cast<std::byte*>(bytes.data()), bytes.size()), tensor_of(buffer.data(), bytes.size()));
    fast->synchronize();
    return buffer;
  }
  Bytes on_host(Buffer& buffer, size_t num_bytes) {
    Bytes bytes(num_bytes);
    fast->copy(tensor_of(buffer.data(), num_bytes), tensor_of(bytes.data(), num_bytes));
    fast->synchronize();
    return bytes;
  }
  static Tensor tensor_of(std::byte* data, size_t bytes) { return {data, DType::u8, {static_cast<int64_t>(bytes)}}; }

  // Nobody reads what lies between codes and scales, and the sign of a NaN is the processor's.
  static void settle(const RowFormat& format, Bytes& wire) {
    if (format.wire != Wire::fp8) return;
    const auto codes = static_cast<size_t>(format.width);
    for (size_t row = 0; row < wire.size(); row += format.wire_bytes()) {
      std::replace(wire.begin() + static_cast<int64_t>(row), wire.begin() + static_cast<int64_t>(row + codes),
                   std::byte{0xff}, std::byte{0x7f});
      std::memset(wire.data() + row + codes, 0, fp8_scales_offset(format.width) - codes);
    }
  }

  // The same of NaNs that are decoded.
  static Bytes with_one_nan(Bytes bytes) {
    auto* values = reinterpret_cast<float*>(bytes.data());
    for (size_t i = 0; i < bytes.size() / sizeof(float); ++i) {
      if (values[i] != values[i]) values[i] = std::numeric_limits<float>::quiet_NaN();
    }
    return bytes;
  }

  // Encodes rows, and decodes what came out in another order, on the host and on the device.
  void compare(const RowFormat& format, const Elements& rows, int64_t count) {
    const RowCodec& codec = *fast->device_codec();
    const size_t wire_bytes = static_cast<size_t>(count) * format.wire_bytes();
    const size_t value_bytes = static_cast<size_t>(count) * format.row_bytes();
    Buffer wire_there = on_device(filled(wire_bytes));
    Bytes wire = filled(wire_bytes);
    codec.encode(format, rows, count, wire_there.data());
    host_codec().encode(format, rows, count, wire.data());
    Bytes encoded = on_host(wire_there, wire_bytes);
    settle(format, encoded);
    settle(format, wire);
    EXPECT_EQ(encoded, wire);

    std::vector<int32_t> backwards;
    for (int64_t i = count; i-- > 0;) backwards.push_back(static_cast<int32_t>(i));
    for (const std::span<const int32_t> index : {std::span<const int32_t>(), std::span<const int32_t>(backwards)}) {
      Buffer values_there = on_device(filled(value_bytes));
      Bytes values = filled(value_bytes);
      codec.decode(format, {wire_there.data(), format.wire_bytes(), index}, count, values_there.data());
      host_codec().decode(format, {wire.data(), format.wire_bytes(), index}, count, values.data());
      EXPECT_EQ(with_one_nan(on_host(values_there, value_bytes)), with_one_nan(values));
    }
  }
};

TEST_P(RowCodecs, PacksAsTheHostDoes) {
  const std::vector<int32_t> picked = {3, 3, 0, 8, 5};
  for (const int64_t width : {int64_t{1}, int64_t{5}, int64_t{128}, int64_t{130}, int64_t{260}, int64_t{515}}) {
    const Tensor rows = random({kNumRows, width}, 30.0);
    float* values = rows.data<float>();
    values[0] = 0.0F;
    values[width - 1] = std::numeric_limits<float>::quiet_NaN();
    values[width] = std::numeric_limits<float>::infinity();
    for (int64_t i = 0; i < width; ++i) values[3 * width + i] *= 1e-30F;  // below what a scale tells apart
    for (const Wire wire : kWires) {
      SCOPED_TRACE(testing::Message() << name_of(wire) << ", width " << width);
      const RowFormat format = {DType::f32, width, wire};
      compare(format, {rows.raw(), rows.row_bytes()}, kNumRows);
      compare(format, {rows.raw(), rows.row_bytes(), picked}, static_cast<int64_t>(picked.size()));
      compare(format, {rows.raw(), 2 * rows.row_bytes()}, kNumRows / 2);  // every second
      compare(format, {rows.raw(), rows.row_bytes()}, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, RowCodecs, test::each_fast_back_end(), test::name_of_back_end);

}  // namespace
}  // namespace cadre::row_codec_test
