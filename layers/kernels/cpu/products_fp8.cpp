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

// c[m,n] = the sum over blocks of k of a[m,block] b[block,n] with their scales, or adds. The scales of b in a block lie one
// after the other. block_product(shape, a, b, c, c_stride) multiplies codes.
template <class Multiply>
void multiply_scaled(const GemmShape& shape, const Operand& a, const Operand& b, float* c, Accumulate accumulate,
                     const Multiply& block_product) {
  shape.threads->run((shape.m + kStripRows - 1) / kStripRows, [&](int64_t strip) {
    const int64_t row = strip * kStripRows;
    const int64_t rows = std::min(kStripRows, shape.m - row);
    float* sums = c + row * shape.n;
    float* products = cpu::part_scratch(static_cast<size_t>(rows * shape.n));
    if (accumulate == Accumulate::no) std::fill_n(sums, rows * shape.n, 0.0F);
    for (int64_t block = 0; block < num_fp8_tiles(shape.k); ++block) {
      const int64_t first = block * kFp8TileChannels;
      const int64_t terms = std::min(kFp8TileChannels, shape.k - first);
      block_product(GemmShape{rows, shape.n, terms}, shifted(a.codes, row, first), shifted(b.codes, first, 0), products,
                    shape.n);
      const float* b_scales = b.scales.data + block * b.scales.block_stride;
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t scale = (row + r) / a.scales.elements_per_scale * a.scales.stride;
        add_scaled(products + r * shape.n, a.scales.data[scale + block * a.scales.block_stride], b_scales,
                   b.scales.elements_per_scale, shape.n, sums + r * shape.n);
      }
    }
  });
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
  Fp8Products(Fp8Scale kind, const ProductSettings& settings) : kind_(kind), settings_(settings) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const Fp8Weight& kept = rounded(weight);
    const Operand rows = round_rows(x);
    const GemmLibrary library = settings_.choice.library(GemmLayout::nt, x.dim(0));
    const bool by_rows = settings_.by_rows(weight);
    multiply_scaled({x.dim(0), width_out, width_in, settings_.threads}, rows,
                    {{kept.codes.as<float>(), width_in, /*transposed=*/true},
                     {kept.scales_by_column.as<float>(), kFp8TileChannels, 1, num_fp8_tiles(width_out)}},
                    y.data<float>(), Accumulate::no, [&](auto... product) {
                      if (by_rows) return row_gemm(product...);
                      gemm(library, product...);
                    });
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const Fp8Weight& kept = rounded(weight);
    const Operand rows = round_rows(dy);
    const GemmLibrary library = settings_.choice.library(GemmLayout::nn, dy.dim(0));
    multiply_scaled(
        {dy.dim(0), width_in, width_out, settings_.threads}, rows,
        {{kept.codes.as<float>(), width_in}, {kept.scales.as<float>(), kFp8TileChannels, 1, num_fp8_tiles(width_in)}},
        dx.data<float>(), accumulate, [library](auto... product) { gemm(library, product...); });
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    const int64_t tokens = x.dim(0);
    float* x_codes =
        cpu::scratch_floats(static_cast<size_t>((tokens + num_fp8_tiles(tokens)) * (width_in + width_out)));
    float* dy_codes = x_codes + tokens * width_in;
    float* x_scales = dy_codes + tokens * width_out;
    float* dy_scales = x_scales + num_fp8_tiles(tokens) * width_in;
    round_columns(x, x_codes, x_scales);
    round_columns(dy, dy_codes, dy_scales);
    const GemmLibrary library = settings_.choice.library(GemmLayout::tn, tokens);
    multiply_scaled({width_out, width_in, tokens, settings_.threads},
                    {{dy_codes, width_out, /*transposed=*/true}, {dy_scales, 1, 1, width_out}},
                    {{x_codes, width_in}, {x_scales, 1, 1, width_in}}, dw.data<float>(), accumulate,
                    [library](auto... product) { gemm(library, product...); });
  }

 private:
  // In scratch memory.
  Operand round_rows(const Tensor& rows) const {
    const auto num_rows = static_cast<size_t>(rows.dim(0));
    const auto width = static_cast<size_t>(rows.dim(1));
    const auto tiles = static_cast<size_t>(num_fp8_tiles(rows.dim(1)));
    float* codes = cpu::scratch_floats(num_rows * (width + tiles));
    float* scales = codes + num_rows * width;
    cpu::for_pieces(*settings_.threads, num_rows, width, [&](size_t first, size_t count) {
      round_tiles_to_fp8(rows.data<float>() + first * width, static_cast<int64_t>(count), rows.dim(1), kind_,
                         codes + first * width, scales + first * tiles);
    });
    return {{codes, rows.dim(1)}, {scales, 1, num_fp8_tiles(rows.dim(1)), 1}};
  }

  // Calls round(first row, rows) for each 128 rows.
  template <class Round>
  void for_tile_rows(int64_t rows, const Round& round) const {
    settings_.threads->run(num_fp8_tiles(rows), [&](int64_t tile) {
      const int64_t first = tile * kFp8TileChannels;
      round(first, std::min(kFp8TileChannels, rows - first));
    });
  }

  void round_columns(const Tensor& rows, float* codes, float* scales) const {
    const int64_t width = rows.dim(1);
    for_tile_rows(rows.dim(0), [&](int64_t first, int64_t count) {
      round_column_tiles_to_fp8(rows.data<float>() + first * width, count, width, kind_, codes + first * width,
                                scales + first / kFp8TileChannels * width);
    });
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
    for_tile_rows(width_out, [&](int64_t first, int64_t count) {
      round_blocks_to_fp8(weight.value.data<float>() + first * width_in, count, width_in, kind_,
                          kept->codes.as<float>() + first * width_in,
                          scales + first / kFp8TileChannels * num_fp8_tiles(width_in));
    });
    for (int64_t i = 0; i < num_fp8_tiles(width_out); ++i) {
      for (int64_t j = 0; j < num_fp8_tiles(width_in); ++j) {
        kept->scales_by_column.as<float>()[j * num_fp8_tiles(width_out) + i] = scales[i * num_fp8_tiles(width_in) + j];
      }
    }
    kept->version = weight.version;
    return *kept;
  }

  Fp8Scale kind_;
  ProductSettings settings_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp8_products(Fp8Scale kind, const ProductSettings& settings) {
  return std::make_unique<Fp8Products>(kind, settings);
}

}  // namespace cadre
