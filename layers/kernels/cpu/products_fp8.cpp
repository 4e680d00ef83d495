// SPDX-License-Identifier: Apache-2.0
// Products with fp8 operands as the tensor cores of DeepSeek-V3's recipe compute them (arXiv 2412.19437, section 3.3),
// emulated exactly: operands are rounded to E4M3 with a scale for each 1 x 128 tile of activations or gradients and each
// 128 x 128 block of a weight; blocks of a fused weight may span its parts. A sum over 128 code products is made in fp32
// (each product is exact there), then scaled and added to the fp32 result: the promotion after N_C = 128. A tile lies along
// the axis that is summed over: channels in forward and input gradient, tokens in the weight gradient.
#include <algorithm>

#include "comm/base/buffer.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

// Rows of the result that are made at once, so that their sums stay in the cache while blocks are added.
constexpr int64_t kStripRows = 64;

// The scale of element i, along the axis that is kept, in block b, of the axis that is summed over.
struct Scales {
  const float* data;
  int64_t elements_per_scale;
  int64_t stride;        // to the next scale of a block
  int64_t block_stride;  // to the same scale of the next block
};

struct Operand {
  GemmOperand codes;
  Scales scales;
};

// Moves the start of op(a) by `rows` and `columns`.
GemmOperand shifted(const GemmOperand& a, int64_t rows, int64_t columns) {
  const int64_t offset = a.transposed ? columns * a.stride + rows : rows * a.stride + columns;
  return {a.data + offset, a.stride, a.transposed};
}

// c[m,n] = the sum over blocks of k of a[m,block] b[block,n] with their scales, or adds. `room` has kStripRows n floats.
// The scales of b in a block lie one after the other.
void multiply_scaled(const GemmShape& shape, const Operand& a, const Operand& b, float* c, Accumulate accumulate,
                     float* room, Gemm* block_product) {
  if (accumulate == Accumulate::no) std::fill_n(c, shape.m * shape.n, 0.0F);
  for (int64_t row = 0; row < shape.m; row += kStripRows) {
    const int64_t rows = std::min(kStripRows, shape.m - row);
    for (int64_t block = 0; block < num_fp8_tiles(shape.k); ++block) {
      const int64_t first = block * kFp8TileChannels;
      const int64_t terms = std::min(kFp8TileChannels, shape.k - first);
      block_product({rows, shape.n, terms, shape.poller}, shifted(a.codes, row, first), shifted(b.codes, first, 0),
                    room, shape.n, 1.0F);
      const float* b_scales = b.scales.data + block * b.scales.block_stride;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t scale = (row + r) / a.scales.elements_per_scale * a.scales.stride;
        add_scaled(room + r * shape.n, a.scales.data[scale + block * a.scales.block_stride], b_scales,
                   b.scales.elements_per_scale, shape.n, c + (row + r) * shape.n);
      }
    }
  }
}

// A weight [N,K] in blocks. Scales are kept by column block too, so that those of one block of N lie in a row for
// the input gradient, and those of one block of K for forward.
struct Fp8Weight final : PackedWeight {
  Fp8Weight(int64_t width_out, int64_t width_in, Fp8Scale scale_kind)
      : kind(scale_kind),
        codes(static_cast<size_t>(width_out * width_in) * sizeof(float)),
        scales(static_cast<size_t>(num_fp8_tiles(width_out) * num_fp8_tiles(width_in)) * sizeof(float)),
        scales_by_column(scales.bytes()) {}
  Fp8Scale kind;
  Buffer codes;
  Buffer scales;            // [ceil(N / 128), ceil(K / 128)]
  Buffer scales_by_column;  // its transpose
  uint64_t version = 0;
};

class Fp8Products final : public WeightProducts {
 public:
  Fp8Products(Fp8Scale kind, RowBits bits, Poller* poller) : kind_(kind), bits_(bits), poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const Fp8Weight& kept = rounded(weight);
    const Rounded rows = round_rows(x, width_out);
    multiply_scaled({x.dim(0), width_out, width_in, poller_}, rows.operand,
                    {{kept.codes.as<float>(), width_in, /*transposed=*/true},
                     {kept.scales_by_column.as<float>(), kFp8TileChannels, 1, num_fp8_tiles(width_out)}},
                    y.data<float>(), Accumulate::no, rows.room, forward_gemm(weight, bits_));
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const Fp8Weight& kept = rounded(weight);
    const Rounded rows = round_rows(dy, width_in);
    multiply_scaled(
        {dy.dim(0), width_in, width_out, poller_}, rows.operand,
        {{kept.codes.as<float>(), width_in}, {kept.scales.as<float>(), kFp8TileChannels, 1, num_fp8_tiles(width_in)}},
        dx.data<float>(), accumulate, rows.room, blas_gemm);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    const int64_t tokens = x.dim(0);
    float* x_codes = cpu::scratch_floats(
        static_cast<size_t>((tokens + num_fp8_tiles(tokens)) * (width_in + width_out) + kStripRows * width_in));
    float* dy_codes = x_codes + tokens * width_in;
    float* x_scales = dy_codes + tokens * width_out;
    float* dy_scales = x_scales + num_fp8_tiles(tokens) * width_in;
    float* room = dy_scales + num_fp8_tiles(tokens) * width_out;
    round_column_tiles_to_fp8(x.data<float>(), tokens, width_in, kind_, x_codes, x_scales);
    round_column_tiles_to_fp8(dy.data<float>(), tokens, width_out, kind_, dy_codes, dy_scales);
    multiply_scaled({width_out, width_in, tokens, poller_},
                    {{dy_codes, width_out, /*transposed=*/true}, {dy_scales, 1, 1, width_out}},
                    {{x_codes, width_in}, {x_scales, 1, 1, width_in}}, dw.data<float>(), accumulate, room, blas_gemm);
  }

 private:
  struct Rounded {
    Operand operand;
    float* room;
  };

  // In scratch memory, with room for the strips of a product with `width_out` columns.
  Rounded round_rows(const Tensor& rows, int64_t width_out) const {
    const int64_t num_rows = rows.dim(0);
    const int64_t width = rows.dim(1);
    float* codes =
        cpu::scratch_floats(static_cast<size_t>(num_rows * (width + num_fp8_tiles(width)) + kStripRows * width_out));
    float* scales = codes + num_rows * width;
    round_tiles_to_fp8(rows.data<float>(), num_rows, width, kind_, codes, scales);
    return {{{codes, width}, {scales, 1, num_fp8_tiles(width), 1}}, scales + num_rows * num_fp8_tiles(width)};
  }

  const Fp8Weight& rounded(const Parameter& weight) const {
    auto* kept = dynamic_cast<Fp8Weight*>(weight.packed.get());
    if (kept != nullptr && kept->kind == kind_ && kept->version == weight.version) return *kept;
    const int64_t width_out = weight.value.dim(0);
    const int64_t width_in = weight.value.dim(1);
    if (kept == nullptr || kept->kind != kind_) {
      weight.packed = std::make_unique<Fp8Weight>(width_out, width_in, kind_);
      kept = static_cast<Fp8Weight*>(weight.packed.get());
    }
    auto* scales = kept->scales.as<float>();
    round_blocks_to_fp8(weight.value.data<float>(), width_out, width_in, kind_, kept->codes.as<float>(), scales);
    for (int64_t i = 0; i < num_fp8_tiles(width_out); ++i) {
      for (int64_t j = 0; j < num_fp8_tiles(width_in); ++j) {
        kept->scales_by_column.as<float>()[j * num_fp8_tiles(width_out) + i] = scales[i * num_fp8_tiles(width_in) + j];
      }
    }
    kept->version = weight.version;
    return *kept;
  }

  Fp8Scale kind_;
  RowBits bits_;
  Poller* poller_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp8_products(Fp8Scale kind, RowBits bits, Poller* poller) {
  return std::make_unique<Fp8Products>(kind, bits, poller);
}

}  // namespace cadre
