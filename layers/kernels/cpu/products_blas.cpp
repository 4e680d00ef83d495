// SPDX-License-Identifier: Apache-2.0
#include <cblas.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "comm/base/buffer.hpp"
#include "comm/base/check.hpp"
#include "comm/job/poll.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"
#include "layers/kernels/kernels.hpp"

namespace cadre {
namespace {

blasint blas_int(int64_t extent) {
  CADRE_ASSERT(extent >= 0 && extent <= std::numeric_limits<blasint>::max());
  return static_cast<blasint>(extent);
}

// BLAS asks for strides of at least one element, also of matrices without columns.
blasint blas_stride(int64_t stride) { return std::max<blasint>(1, blas_int(stride)); }

void scale_matrix(const GemmShape& shape, float* c, int64_t c_stride, float beta) {
  for (int64_t row = 0; row < shape.m; ++row) {
    float* begin = c + row * c_stride;
    for (int64_t i = 0; i < shape.n; ++i) begin[i] = beta == 0.0F ? 0.0F : beta * begin[i];
  }
}

// One row: a matrix-vector product, several times faster than sgemm with m = 1.
void gemv(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, float alpha, float beta) {
  const blasint a_increment = a.transposed ? blas_stride(a.stride) : 1;
  const int64_t stored_rows = b.transposed ? shape.n : shape.k;
  const int64_t stored_columns = b.transposed ? shape.k : shape.n;
  cblas_sgemv(CblasRowMajor, b.transposed ? CblasNoTrans : CblasTrans, blas_int(stored_rows), blas_int(stored_columns),
              alpha, b.data, blas_stride(b.stride), a.data, a_increment, beta, c, 1);
}

void multiply(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride,
              float alpha, float beta) {
  cblas_sgemm(CblasRowMajor, a.transposed ? CblasTrans : CblasNoTrans, b.transposed ? CblasTrans : CblasNoTrans,
              blas_int(shape.m), blas_int(shape.n), blas_int(shape.k), alpha, a.data, blas_stride(a.stride), b.data,
              blas_stride(b.stride), beta, c, blas_stride(c_stride));
}

// Between tiles there is a poll point. A tile of this size takes 0.5 to 1 ms on one core and is, with both sides of 256
// or so, within a few percent of the speed of the whole product. The cut depends on the shape alone, so that polling
// changes no bit.
constexpr int64_t kTileRows = 256;
constexpr double kTileFlops = 1e8;

int64_t tile_columns(int64_t rows, const GemmShape& shape) {
  const double columns = kTileFlops / (2.0 * static_cast<double>(rows) * static_cast<double>(shape.k));
  return std::max<int64_t>(128, static_cast<int64_t>(columns) / 64 * 64);
}

const float* at_row(const GemmOperand& a, int64_t row) { return a.data + (a.transposed ? row : row * a.stride); }
const float* at_column(const GemmOperand& b, int64_t column) {
  return b.data + (b.transposed ? column * b.stride : column);
}

}  // namespace

void poll_point(const GemmShape& shape) {
  if (shape.poller != nullptr) shape.poller->point();
}

void gemm(const GemmShape& shape, const GemmOperand& a, const GemmOperand& b, float* c, int64_t c_stride, float alpha,
          float beta) {
  if (shape.m == 0 || shape.n == 0) return;
  if (shape.k == 0) return scale_matrix(shape, c, c_stride, beta);
  if (shape.m == 1) return gemv(shape, a, b, c, alpha, beta);
  const int64_t tile_rows = std::min(shape.m, kTileRows);
  const int64_t tile_width = std::min(shape.n, tile_columns(tile_rows, shape));
  for (int64_t row = 0; row < shape.m; row += tile_rows) {
    for (int64_t column = 0; column < shape.n; column += tile_width) {
      const GemmShape tile = {std::min(tile_rows, shape.m - row), std::min(tile_width, shape.n - column), shape.k};
      multiply(tile, {at_row(a, row), a.stride, a.transposed}, {at_column(b, column), b.stride, b.transposed},
               c + row * c_stride + column, c_stride, alpha, beta);
      poll_point(shape);
    }
  }
}

std::string blas_core_name() { return openblas_get_corename(); }

int kernel_threads() { return openblas_get_num_threads(); }

void set_kernel_threads(int threads) {
  CADRE_CHECK(threads >= 1, fmt::format("kernel threads = {}, needs at least 1", threads));
  openblas_set_num_threads(threads);
}

namespace {

class Fp32Products final : public WeightProducts {
 public:
  Fp32Products(RowBits bits, Poller* poller) : bits_(bits), poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    forward_gemm(weight, bits_)({x.dim(0), width_out, width_in, poller_}, {x.data<float>(), width_in},
                                {weight.value.data<float>(), width_in, /*transposed=*/true}, y.data<float>(), width_out,
                                1.0F);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({dy.dim(0), width_in, width_out, poller_}, {dy.data<float>(), width_out},
         {weight.value.data<float>(), width_in}, dx.data<float>(), width_in, 1.0F, beta);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    const float beta = accumulate == Accumulate::yes ? 1.0F : 0.0F;
    gemm({width_out, width_in, x.dim(0), poller_}, {dy.data<float>(), width_out, /*transposed=*/true},
         {x.data<float>(), width_in}, dw.data<float>(), width_in, 1.0F, beta);
  }

 private:
  RowBits bits_;
  Poller* poller_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_fp32_products(RowBits bits, Poller* poller) {
  return std::make_unique<Fp32Products>(bits, poller);
}

namespace {

// A weight whose values are bf16 numbers, stored as f32.
struct RoundedWeight final : PackedWeight {
  explicit RoundedWeight(size_t bytes) : values(bytes) {}
  Buffer values;
  uint64_t version = 0;
};

const float* rounded(const Parameter& weight) {
  auto* kept = dynamic_cast<RoundedWeight*>(weight.packed.get());
  if (kept != nullptr && kept->version == weight.version) return kept->values.as<float>();
  if (kept == nullptr) {
    weight.packed = std::make_unique<RoundedWeight>(weight.value.bytes());
    kept = static_cast<RoundedWeight*>(weight.packed.get());
  }
  round_through_bf16(weight.value.data<float>(), kept->values.as<float>(), cpu::count_of(weight.value));
  kept->version = weight.version;
  return kept->values.as<float>();
}

class RoundedProducts final : public WeightProducts {
 public:
  RoundedProducts(RowBits bits, Poller* poller) : bits_(bits), poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    float* x_rounded = cpu::scratch_floats(cpu::count_of(x));
    round_through_bf16(x.data<float>(), x_rounded, cpu::count_of(x));
    forward_gemm(weight, bits_)({x.dim(0), width_out, width_in, poller_}, {x_rounded, width_in},
                                {rounded(weight), width_in, /*transposed=*/true}, y.data<float>(), width_out, 1.0F);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const int64_t width_in = weight.value.dim(1);
    const int64_t width_out = weight.value.dim(0);
    float* dy_rounded = cpu::scratch_floats(cpu::count_of(dy));
    round_through_bf16(dy.data<float>(), dy_rounded, cpu::count_of(dy));
    gemm({dy.dim(0), width_in, width_out, poller_}, {dy_rounded, width_out}, {rounded(weight), width_in},
         dx.data<float>(), width_in, 1.0F, accumulate == Accumulate::yes ? 1.0F : 0.0F);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t width_in = dw.dim(1);
    const int64_t width_out = dw.dim(0);
    float* x_rounded = cpu::scratch_floats(cpu::count_of(x) + cpu::count_of(dy));
    float* dy_rounded = x_rounded + cpu::count_of(x);
    round_through_bf16(x.data<float>(), x_rounded, cpu::count_of(x));
    round_through_bf16(dy.data<float>(), dy_rounded, cpu::count_of(dy));
    gemm({width_out, width_in, x.dim(0), poller_}, {dy_rounded, width_out, /*transposed=*/true}, {x_rounded, width_in},
         dw.data<float>(), width_in, 1.0F, accumulate == Accumulate::yes ? 1.0F : 0.0F);
  }

 private:
  RowBits bits_;
  Poller* poller_;
};

}  // namespace

std::unique_ptr<WeightProducts> make_rounded_products(RowBits bits, Poller* poller) {
  return std::make_unique<RoundedProducts>(bits, poller);
}

std::unique_ptr<WeightProducts> make_bf16_products(RowBits bits, Poller* poller) {
  std::unique_ptr<WeightProducts> native = make_onednn_products(poller);
  return native ? std::move(native) : make_rounded_products(bits, poller);
}

}  // namespace cadre
