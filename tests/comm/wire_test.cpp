// SPDX-License-Identifier: Apache-2.0
// What the wire does to a row, against the definition of the formats: every fp8 code, every midpoint between two codes,
// random floats against a search of all codes, and a bound for each element of a row.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "comm/base/check.hpp"
#include "comm/base/dtype.hpp"
#include "comm/base/random.hpp"
#include "comm/wire/format.hpp"
#include "comm/wire/fp8.hpp"
#include "tests/support/wire_bounds.hpp"

namespace cadre::wire_test {
namespace {

using test::fp8_bound;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// --- fp8 E4M3 -------------------------------------------------------------------------------------------------------

constexpr int kLargestCode = 0x7e;
constexpr int kNanCode = 0x7f;

// The value of a positive code but NaN: m 2^-9 for exponent 0, else (1 + m / 8) 2^(e - 7).
double value_of_code(int code) {
  const int exponent = code >> 3;
  const int mantissa = code & 7;
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
}

// The nearest of all codes, of two as near the even one; the largest for whatever lies beyond it.
int nearest_code(double value) {
  const double magnitude = std::fabs(value);
  int best = 0;
  for (int code = 1; code <= kLargestCode; ++code) {
    const double distance = std::fabs(value_of_code(code) - magnitude);
    const double best_distance = std::fabs(value_of_code(best) - magnitude);
    if (distance < best_distance || (distance == best_distance && code % 2 == 0)) best = code;
  }
  return best | (std::signbit(value) ? 0x80 : 0);
}

TEST(Fp8, decodes_every_code) {
  for (int code = 0; code < kNanCode; ++code) {
    EXPECT_EQ(from_fp8(static_cast<uint8_t>(code)), value_of_code(code)) << code;
    EXPECT_EQ(from_fp8(static_cast<uint8_t>(code | 0x80)), -value_of_code(code)) << code;
  }
  EXPECT_EQ(value_of_code(kLargestCode), kFp8Max);
  EXPECT_TRUE(std::signbit(from_fp8(0x80)));
  EXPECT_TRUE(std::isnan(from_fp8(0x7f)));
  EXPECT_TRUE(std::isnan(from_fp8(0xff)));
}

TEST(Fp8, every_code_survives_the_way_there_and_back) {
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(to_fp8(from_fp8(static_cast<uint8_t>(code))), code) << "code " << code;
  }
}

TEST(Fp8, rounds_midpoints_to_even_and_their_neighbours_to_the_nearer_code) {
  for (int code = 0; code < kLargestCode; ++code) {
    const auto middle = static_cast<float>((value_of_code(code) + value_of_code(code + 1)) / 2.0);  // exact
    const int even = code % 2 == 0 ? code : code + 1;
    for (const int sign : {0, 0x80}) {
      const float direction = sign == 0 ? 1.0F : -1.0F;
      EXPECT_EQ(to_fp8(direction * middle), even | sign) << "between " << code << " and " << code + 1;
      EXPECT_EQ(to_fp8(direction * std::nextafter(middle, 0.0F)), code | sign) << "below the middle, code " << code;
      EXPECT_EQ(to_fp8(direction * std::nextafter(middle, kInfinity)), (code + 1) | sign) << "above it, code " << code;
    }
  }
}

TEST(Fp8, saturates_and_keeps_nan_and_the_sign_of_zero) {
  for (const float beyond : {448.0F, std::nextafter(448.0F, kInfinity), 464.0F, 480.0F, 1e30F,
                             std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(to_fp8(beyond), 0x7e) << beyond;
    EXPECT_EQ(to_fp8(-beyond), 0xfe) << beyond;
  }
  EXPECT_EQ(to_fp8(std::nextafter(448.0F, 0.0F)), 0x7e);
  EXPECT_EQ(to_fp8(0.0F), 0x00);
  EXPECT_EQ(to_fp8(-0.0F), 0x80);
  EXPECT_EQ(to_fp8(std::numeric_limits<float>::denorm_min()), 0x00);
  for (const uint32_t bits : {0x7f800001U, 0x7fc00000U, 0x7fffffffU}) {
    EXPECT_EQ(to_fp8(std::bit_cast<float>(bits)), 0x7f);
    EXPECT_EQ(to_fp8(std::bit_cast<float>(bits | 0x80000000U)), 0xff);
  }
}

// Half of the floats are any bits at all, half lie where the codes are dense.
TEST(Fp8, equals_a_search_of_all_codes_for_random_floats) {
  const Random random(1, "floats", 0);
  int num_compared = 0;
  for (uint64_t i = 0; i < 200'000; ++i) {
    const auto bits = static_cast<uint32_t>(random.below(uint64_t{1} << 32, 2 * i));
    const float value = i % 2 == 0
                            ? std::bit_cast<float>(bits)
                            : static_cast<float>(std::ldexp(random.normal(2 * i + 1), static_cast<int>(i % 20) - 11));
    if (std::isnan(value)) continue;
    ASSERT_EQ(to_fp8(value), nearest_code(value)) << value;
    ++num_compared;
  }
  EXPECT_GT(num_compared, 190'000);
}

// --- bf16 -----------------------------------------------------------------------------------------------------------

TEST(Bf16, every_code_survives_and_midpoints_go_to_even) {
  for (uint32_t code = 0; code < 0x10000U; ++code) {
    const float value = to_float(bf16{static_cast<uint16_t>(code)});
    EXPECT_EQ(std::bit_cast<uint32_t>(value), code << 16);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(to_float(to_bf16(value)))) << code;
      continue;
    }
    ASSERT_EQ(to_bf16(value).bits, code);
    if (std::isinf(value)) continue;
    // The float halfway to the next code away from zero, and its neighbours.
    const uint32_t middle = (code << 16) | 0x8000U;
    ASSERT_EQ(to_bf16(std::bit_cast<float>(middle)).bits, code % 2 == 0 ? code : code + 1);
    ASSERT_EQ(to_bf16(std::bit_cast<float>(middle - 1)).bits, code);
    ASSERT_EQ(to_bf16(std::bit_cast<float>(middle + 1)).bits, code + 1);
  }
  EXPECT_TRUE(std::isnan(to_float(to_bf16(std::bit_cast<float>(0x7f800001U)))));  // no payload left: still no infinity
}

// --- rows -----------------------------------------------------------------------------------------------------------

TEST(RowFormat, says_how_many_bytes_cross) {
  EXPECT_EQ((RowFormat{DType::f32, 2048, Wire::same}).wire_bytes(), 8192U);
  EXPECT_EQ((RowFormat{DType::f32, 2048, Wire::bf16}).wire_bytes(), 4096U);
  EXPECT_EQ((RowFormat{DType::f32, 2048, Wire::fp8}).wire_bytes(), 2048U + 16U * 4U);
  EXPECT_LE(static_cast<double>(RowFormat{DType::f32, 2048, Wire::fp8}.wire_bytes()), 0.27 * 8192.0);
  EXPECT_EQ((RowFormat{DType::f64, 2048, Wire::fp8}).wire_bytes(), 2112U);  // the wire does not depend on what computes
  EXPECT_EQ((RowFormat{DType::f32, 1, Wire::fp8}).wire_bytes(), 4U + 4U);
  EXPECT_EQ((RowFormat{DType::f32, 127, Wire::fp8}).wire_bytes(), 128U + 4U);
  EXPECT_EQ((RowFormat{DType::f32, 128, Wire::fp8}).wire_bytes(), 128U + 4U);
  EXPECT_EQ((RowFormat{DType::f32, 129, Wire::fp8}).wire_bytes(), 132U + 8U);
  EXPECT_EQ(RowFormat::of_bytes(12).wire_bytes(), 12U);
}

constexpr size_t kGuard = 64;  // bytes behind every output, which must stay as they are
constexpr auto kPoison = std::byte{0xee};

void expect_guard(const std::vector<std::byte>& bytes) {
  EXPECT_TRUE(std::all_of(bytes.end() - kGuard, bytes.end(), [](std::byte b) { return b == kPoison; }));
}

template <class T>
std::vector<T> through_the_wire(const RowFormat& format, const std::vector<T>& values) {
  std::vector<std::byte> wire(format.wire_bytes() + kGuard, kPoison);
  std::vector<std::byte> decoded(format.row_bytes() + kGuard, kPoison);
  encode_row(format, reinterpret_cast<const std::byte*>(values.data()), wire.data());
  decode_row(format, wire.data(), decoded.data());
  expect_guard(wire);
  expect_guard(decoded);
  std::vector<T> result(values.size());
  std::memcpy(result.data(), decoded.data(), format.row_bytes());
  return result;
}

// Tiles of a row differ by many orders of magnitude, so a scale of the wrong tile shows.
template <class T>
std::vector<T> row_of_many_magnitudes(int64_t width, uint64_t seed) {
  const Random random(seed, "row", 0);
  const double magnitudes[] = {1.0, 1e6, 1e-3, 1e-7, 40.0};
  std::vector<T> values;
  for (int64_t i = 0; i < width; ++i) {
    const double magnitude = magnitudes[(i / kFp8TileChannels + static_cast<int64_t>(seed)) % 5];
    values.push_back(static_cast<T>(magnitude * random.normal(static_cast<uint64_t>(i))));
  }
  return values;
}

template <class T>
void expect_bounds(DType dtype) {
  for (const int64_t width : {1, 2, 3, 4, 5, 7, 16, 126, 127, 128, 129, 130, 131, 255, 256, 257, 384, 1000, 2048}) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      SCOPED_TRACE(testing::Message() << "width " << width << ", seed " << seed);
      const std::vector<T> values = row_of_many_magnitudes<T>(width, seed);
      const std::vector<T> same = through_the_wire({dtype, width, Wire::same}, values);
      EXPECT_EQ(std::memcmp(same.data(), values.data(), values.size() * sizeof(T)), 0);
      const std::vector<T> rounded = through_the_wire({dtype, width, Wire::bf16}, values);
      const std::vector<T> scaled = through_the_wire({dtype, width, Wire::fp8}, values);
      for (size_t i = 0; i < values.size(); ++i) {
        const auto value = static_cast<double>(values[i]);
        const auto expect_bound = [&](Wire wire, T result) {
          ASSERT_LE(std::fabs(static_cast<double>(result) - value), test::wire_bound(wire, values, i))
              << name_of(wire) << ", element " << i << " = " << value;
        };
        expect_bound(Wire::bf16, rounded[i]);
        expect_bound(Wire::fp8, scaled[i]);
      }
    }
  }
}

TEST(RowFormat, keeps_every_element_within_the_bound_of_its_format_f32) { expect_bounds<float>(DType::f32); }
TEST(RowFormat, keeps_every_element_within_the_bound_of_its_format_f64) { expect_bounds<double>(DType::f64); }

// The scale uses the whole range: the largest element of each tile is one of the codes' ends, and comes back but for
// fp32 rounding. A scale that is too large or too small by a factor of two would still keep the bound.
TEST(RowFormat, fp8_maps_the_largest_of_each_tile_to_448) {
  const int64_t width = 3 * kFp8TileChannels + 10;
  std::vector<float> values = row_of_many_magnitudes<float>(width, 2);
  for (size_t tile = 0; tile < 4; ++tile) values[tile * kFp8TileChannels + 5] = tile % 2 == 0 ? 1e7F : -0.37F * 1e7F;
  const std::vector<float> decoded = through_the_wire({DType::f32, width, Wire::fp8}, values);
  for (size_t tile = 0; tile < 4; ++tile) {
    const size_t i = tile * kFp8TileChannels + 5;
    EXPECT_NEAR(decoded[i], values[i], std::fabs(values[i]) * test::kWireSlack);
  }
}

TEST(RowFormat, rows_of_zeros_stay_zero) {
  for (const Wire wire : {Wire::same, Wire::bf16, Wire::fp8}) {
    for (const int64_t width : {1, 127, 128, 300}) {
      const std::vector<float> zeros(static_cast<size_t>(width), 0.0F);
      EXPECT_EQ(through_the_wire({DType::f32, width, wire}, zeros), zeros) << name_of(wire) << ", width " << width;
    }
  }
}

// Below 1e-4 the scale stays that of 1e-4: small values are rounded to multiples of 2^-9 of it, the smallest to zero.
TEST(RowFormat, fp8_of_a_tile_below_the_smallest_amax) {
  const double scale = 1e-4 / 448.0;
  const std::vector<float> values = {5e-5F, -2e-5F, 1e-8F, static_cast<float>(scale * 0x1p-11), 0.0F};
  const std::vector<float> decoded = through_the_wire({DType::f32, 5, Wire::fp8}, values);
  for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(decoded[i], values[i], fp8_bound(values[i], scale)) << i;
  EXPECT_EQ(decoded[3], 0.0F);  // less than half of the smallest code
  EXPECT_NE(decoded[2], 0.0F);
}

TEST(RowFormat, not_a_number_stays_where_it_is) {
  for (const Wire wire : {Wire::bf16, Wire::fp8}) {
    std::vector<float> values = row_of_many_magnitudes<float>(200, 1);
    values[17] = kNan;
    const std::vector<float> decoded = through_the_wire({DType::f32, 200, wire}, values);
    for (size_t i = 0; i < values.size(); ++i) EXPECT_EQ(std::isnan(decoded[i]), i == 17) << name_of(wire) << " " << i;
  }
}

// A sum must take every element type that rows have; the wire changes floating rows only.
TEST(RowFormat, adds_rows_and_refuses_what_it_cannot_round) {
  std::vector<double> sum = {1.0, 2.0, 3.0};
  const std::vector<double> more = {0.5, 0.25, -3.0};
  add_row({DType::f64, 3, Wire::same}, reinterpret_cast<const std::byte*>(more.data()),
          reinterpret_cast<std::byte*>(sum.data()));
  EXPECT_EQ(sum, (std::vector<double>{1.5, 2.25, 0.0}));
  std::byte row[32] = {};
  std::byte wire[64] = {};
  EXPECT_THROW(encode_row({DType::i64, 4, Wire::fp8}, row, wire), Error);
  EXPECT_THROW(decode_row({DType::i32, 4, Wire::bf16}, wire, row), Error);
  EXPECT_THROW(add_row(RowFormat::of_bytes(8), row, wire), Error);
}

}  // namespace
}  // namespace cadre::wire_test
