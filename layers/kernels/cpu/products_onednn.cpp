// SPDX-License-Identifier: Apache-2.0
// bf16 products by oneDNN. A weight is kept in the layout oneDNN asks for (`any`), once for each version and direction;
// activations are copied to bf16. Primitives are compiled for a shape, so row counts, which are ragged in a mixture of
// experts, are cut to multiples of kRowStep plus a rest: few shapes, each compiled once.
#include <dnnl.hpp>
#include <omp.h>

#include <algorithm>
#include <array>
#include <map>
#include <utility>

#include "comm/job/poll.hpp"
#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

using dnnl::memory;
using ElementType = memory::data_type;

constexpr ElementType kOperand = ElementType::bf16;
constexpr int64_t kRowStep = 16;
constexpr size_t kMaxPrimitives = 1024;  // of each kind

const dnnl::engine& engine() {
  static const dnnl::engine cpu_engine(dnnl::engine::kind::cpu, 0);
  return cpu_engine;
}

memory::desc row_major(int64_t num_rows, int64_t width, ElementType type) {
  return {{num_rows, width}, type, memory::dims{width, 1}};
}

// Element (i, j) lies at i + j * stride.
memory::desc column_major(int64_t num_rows, int64_t width, ElementType type, int64_t stride) {
  return {{num_rows, width}, type, memory::dims{1, stride}};
}

memory::desc column_major(int64_t num_rows, int64_t width, ElementType type) {
  return column_major(num_rows, width, type, num_rows);
}

memory view(const memory::desc& desc, const void* data) { return {desc, engine(), const_cast<void*>(data)}; }

// y[rows, width_out] = x[rows, width_in] w[width_out, width_in]^T, or y += it
struct Shape {
  int64_t num_rows;
  int64_t width_out;
  int64_t width_in;
  Accumulate accumulate;
  int64_t grad_stride = 0;  // of a weight gradient: the width of dy, of which width_out columns are used
  auto operator<=>(const Shape&) const = default;
};

// Between tiles there is a poll point; a tile takes about 1 ms on one core. The cut depends on the shape alone, so that
// polling changes no bit. `others_product` is that of the two extents that are not cut.
constexpr double kTileFlops = 4e8;

int64_t tile_extent(int64_t others_product) {
  const double extent = kTileFlops / (2.0 * std::max(1.0, static_cast<double>(others_product)));
  return std::max<int64_t>(256, static_cast<int64_t>(extent) / kRowStep * kRowStep);
}

dnnl::primitive_attr add_to_output(Accumulate accumulate) {
  dnnl::primitive_attr attributes;
  if (accumulate == Accumulate::yes) {
    dnnl::post_ops sum;
    sum.append_sum(1.0F);
    attributes.set_post_ops(sum);
  }
  return attributes;
}

dnnl::inner_product_forward::primitive_desc describe_product(const Shape& shape, const memory::desc& weight) {
  const dnnl::inner_product_forward::desc desc(dnnl::prop_kind::forward_inference,
                                               row_major(shape.num_rows, shape.width_in, kOperand), weight,
                                               row_major(shape.num_rows, shape.width_out, ElementType::f32));
  return {desc, add_to_output(shape.accumulate), engine()};
}

// dw[width_out, width_in] = dy[rows, width_out]^T x[rows, width_in]
dnnl::matmul::primitive_desc describe_weight_grad(const Shape& shape) {
  const dnnl::matmul::desc desc(column_major(shape.width_out, shape.num_rows, kOperand, shape.grad_stride),
                                row_major(shape.num_rows, shape.width_in, kOperand),
                                row_major(shape.width_out, shape.width_in, ElementType::f32));
  return {desc, add_to_output(shape.accumulate), engine()};
}

// A stream and the primitives that were compiled for it.
struct Compiled {
  dnnl::stream stream{engine()};
  std::map<Shape, dnnl::inner_product_forward> products;
  std::map<Shape, dnnl::matmul> weight_grads;
};

template <class Primitive, class Create>
Primitive& find_or_create(std::map<Shape, Primitive>& primitives, const Shape& shape, Create&& create) {
  const auto found = primitives.find(shape);
  if (found != primitives.end()) return found->second;
  if (primitives.size() >= kMaxPrimitives) primitives.clear();
  return primitives.emplace(shape, Primitive(create())).first->second;
}

// A weight in the layout oneDNN asks for.
struct Packed {
  memory data;
  uint64_t version = 0;
};

struct OneDnnWeight final : PackedWeight {
  Packed forward;
  Packed input_grad;
};

OneDnnWeight& kept_copies(const Parameter& weight) {
  auto* kept = dynamic_cast<OneDnnWeight*>(weight.packed.get());
  if (kept == nullptr) {
    weight.packed = std::make_unique<OneDnnWeight>();
    kept = static_cast<OneDnnWeight*>(weight.packed.get());
  }
  return *kept;
}

memory::desc wanted_layout(const memory::dims& extents) {
  const Shape typical{4 * kRowStep, extents[0], extents[1], Accumulate::no};
  return describe_product(typical, {extents, kOperand, memory::format_tag::any}).weights_desc();
}

// The weight in oneDNN's layout, brought up to its version. `stored` says how the f32 weight lies in memory.
memory pack(dnnl::stream& stream, const Parameter& weight, const memory::desc& stored, Packed& packed) {
  if (packed.data && packed.version == weight.version) return packed.data;
  memory source = view(stored, weight.value.raw());
  if (!packed.data) packed.data = memory(wanted_layout(stored.dims()), engine());
  dnnl::reorder(source, packed.data).execute(stream, source, packed.data);
  stream.wait();
  packed.version = weight.version;
  return packed.data;
}

// `rows` in bf16 with zero rows behind, in `room` for padded_rows of floats.
const bf16* to_operand(const Tensor& rows, int64_t padded_rows, float* room) {
  auto* copy = reinterpret_cast<bf16*>(room);
  round_to_bf16(rows.data<float>(), copy, cpu::count_of(rows));
  std::fill(copy + cpu::count_of(rows), copy + padded_rows * rows.row_numel(), bf16{});
  return copy;
}

class OneDnnProducts final : public WeightProducts {
 public:
  explicit OneDnnProducts(Poller* poller) : poller_(poller) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const memory::desc stored = row_major(weight.value.dim(0), weight.value.dim(1), ElementType::f32);
    multiply(x, pack(compiled_.stream, weight, stored, kept_copies(weight).forward), y, Accumulate::no);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const memory::desc stored = column_major(weight.value.dim(1), weight.value.dim(0), ElementType::f32);
    multiply(dy, pack(compiled_.stream, weight, stored, kept_copies(weight).input_grad), dx, accumulate);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t padded_rows = (x.dim(0) + kRowStep - 1) / kRowStep * kRowStep;
    const auto x_floats = static_cast<size_t>(padded_rows * x.row_numel());
    const auto dy_floats = static_cast<size_t>(padded_rows * dy.row_numel());
    float* room = cpu::scratch_floats(x_floats + dy_floats);
    const memory inputs = view(row_major(padded_rows, dw.dim(1), kOperand), to_operand(x, padded_rows, room));
    const bf16* grads = to_operand(dy, padded_rows, room + x_floats);
    const int64_t tile = tile_extent(padded_rows * dw.dim(1));
    for (int64_t first = 0; first < dw.dim(0); first += tile) {
      const Tensor part = dw.rows(first, std::min(tile, dw.dim(0) - first));
      weight_grad_rows(grads + first, {padded_rows, part.dim(0), dw.dim(1), accumulate, dw.dim(0)}, inputs, part);
      if (poller_ != nullptr) poller_->point();
    }
  }

 private:
  // out[rows] = in[rows] weight^T, or adds
  void multiply(const Tensor& in, const memory& weight, const Tensor& out, Accumulate accumulate) const {
    const bf16* operand = to_operand(in, in.dim(0), cpu::scratch_floats(cpu::count_of(in)));
    const int64_t even_rows = in.dim(0) / kRowStep * kRowStep;
    const int64_t tile = tile_extent(in.row_numel() * out.row_numel());
    for (int64_t first = 0; first < in.dim(0);) {
      const int64_t end = first < even_rows ? std::min(first + tile, even_rows) : in.dim(0);
      multiply_rows(operand + first * in.row_numel(), weight, out.rows(first, end - first), accumulate);
      if (poller_ != nullptr) poller_->point();
      first = end;
    }
  }

  void multiply_rows(const bf16* in, const memory& weight, const Tensor& out, Accumulate accumulate) const {
    const memory::dims extents = weight.get_desc().dims();
    const Shape shape{out.dim(0), extents[0], extents[1], accumulate};
    omp_set_num_threads(kernel_threads());  // OpenMP keeps a number for each thread
    dnnl::inner_product_forward& product =
        find_or_create(compiled_.products, shape, [&] { return describe_product(shape, weight.get_desc()); });
    const memory source = view(row_major(shape.num_rows, shape.width_in, kOperand), in);
    const memory output = view(row_major(shape.num_rows, shape.width_out, ElementType::f32), out.raw());
    product.execute(compiled_.stream, {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, output}});
    compiled_.stream.wait();
  }

  // dw rows = the columns of dy from `grads` on, transposed, times x
  void weight_grad_rows(const bf16* grads, const Shape& shape, const memory& inputs, const Tensor& dw) const {
    const memory source = view(column_major(shape.width_out, shape.num_rows, kOperand, shape.grad_stride), grads);
    const memory output = view(row_major(shape.width_out, shape.width_in, ElementType::f32), dw.raw());
    omp_set_num_threads(kernel_threads());  // OpenMP keeps a number for each thread
    dnnl::matmul& product = find_or_create(compiled_.weight_grads, shape, [&] { return describe_weight_grad(shape); });
    product.execute(compiled_.stream, {{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, inputs}, {DNNL_ARG_DST, output}});
    compiled_.stream.wait();
  }

  Poller* poller_;
  mutable Compiled compiled_;
};

// Whether the CPU multiplies bf16 and oneDNN uses that. oneDNN alone does not tell: it offers such products on any AVX-512,
// and without the instructions they are slower than fp32, with bits that depend on the number of rows.
bool is_supported() {
  constexpr auto kNeeded = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);  // a set of bits
  return cpu_multiplies_bf16() && (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kNeeded) == kNeeded;
}

}  // namespace

std::unique_ptr<WeightProducts> make_onednn_products(Poller* poller) {
  return is_supported() ? std::make_unique<OneDnnProducts>(poller) : nullptr;
}

}  // namespace cadre
