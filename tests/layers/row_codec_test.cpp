// SPDX-License-Identifier: Apache-2.0
// Rows that a device packs for the wire, and unpacks: the bits of the host's codec, wherever the rows lie.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <vector>

#include "comm/transport/wait.hpp"
#include "tests/support/fast_kernels.hpp"

namespace cadre {
namespace {

constexpr Wire kWires[] = {Wire::same, Wire::bf16, Wire::fp8};
constexpr int64_t kNumRows = 9;

class RowCodecs : public test::FastKernels {
 protected:
  void SetUp() override {
    FastKernels::SetUp();
    if (!IsSkipped() && fast->device_codec() == nullptr) GTEST_SKIP() << fast->name() << " leaves rows to the host";
  }

  // Filled with a byte that no codec writes by chance.
  static Buffer filled(size_t bytes, Memory& memory) {
    Buffer buffer(bytes + 1, memory);
    std::memset(buffer.data(), 0xa5, buffer.bytes());
    return buffer;
  }

  void expect_same_bytes(const Buffer& actual, const Buffer& expected) {
    fast->synchronize();
    EXPECT_EQ(std::memcmp(actual.data(), expected.data(), expected.bytes()), 0);
  }

  // Nobody reads what lies between codes and scales.
  static void clear_gaps(const RowFormat& format, int64_t count, Buffer& wire) {
    if (format.wire != Wire::fp8) return;
    const auto codes = static_cast<size_t>(format.width);
    for (int64_t row = 0; row < count; ++row) {
      std::byte* begin = wire.data() + static_cast<size_t>(row) * format.wire_bytes();
      std::memset(begin + codes, 0, fp8_scales_offset(format.width) - codes);
    }
  }

  // Encodes rows, and decodes what came out in another order, on the host and on the device.
  void compare(const RowFormat& format, const Elements& rows, int64_t count) {
    const RowCodec& codec = *fast->device_codec();
    Buffer wire = filled(static_cast<size_t>(count) * format.wire_bytes(), codec.memory());
    Buffer wire_of_host = filled(static_cast<size_t>(count) * format.wire_bytes(), host_memory());
    codec.encode(format, rows, count, wire.data());
    host_codec().encode(format, rows, count, wire_of_host.data());
    Request encoded = codec.done();
    wait(encoded);
    clear_gaps(format, count, wire);
    clear_gaps(format, count, wire_of_host);
    expect_same_bytes(wire, wire_of_host);

    std::vector<int32_t> backwards;
    for (int64_t i = count; i-- > 0;) backwards.push_back(static_cast<int32_t>(i));
    for (const std::span<const int32_t> index : {std::span<const int32_t>(), std::span<const int32_t>(backwards)}) {
      Buffer values = filled(static_cast<size_t>(count) * format.row_bytes(), codec.memory());
      Buffer values_of_host = filled(static_cast<size_t>(count) * format.row_bytes(), host_memory());
      codec.decode(format, {wire.data(), format.wire_bytes(), index}, count, values.data());
      host_codec().decode(format, {wire_of_host.data(), format.wire_bytes(), index}, count, values_of_host.data());
      expect_same_bytes(values, values_of_host);
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
}  // namespace cadre
