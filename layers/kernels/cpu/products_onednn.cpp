// SPDX-License-Identifier: Apache-2.0
// bf16 products by oneDNN. A weight is kept in the layout oneDNN asks for (`any`), once for each version and direction;
// activations are copied to bf16. Primitives are compiled for a shape, so row counts, which are ragged in a mixture of
// experts, are cut to multiples of kRowStep plus a rest: few shapes, each compiled once.
#include <dnnl.hpp>
#include <omp.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>
#include <vector>

#include "layers/kernels/cpu/cpu.hpp"
#include "layers/kernels/cpu/narrow.hpp"
#include "layers/kernels/cpu/products.hpp"

namespace cadre {
namespace {

using dnnl::memory;
using ElementType = memory::data_type;

constexpr ElementType kOperand = ElementType::bf16;
constexpr int64_t kRowStep = 16;
constexpr int64_t kMostRows = 256;       // of a tile
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

// A tile takes 0.3 ms or so on one core. The cut depends on the shape alone, so that neither threads nor polling change a bit.
// `others_product` is that of the two extents that are not cut.
constexpr double kTileFlops = 6e7;

int64_t tile_extent(int64_t others_product, int64_t smallest) {
  const double extent = kTileFlops / (2.0 * std::max(1.0, static_cast<double>(others_product)));
  return std::max<int64_t>(smallest, static_cast<int64_t>(std::min(extent, 1e6)) / kRowStep * kRowStep);
}

dnnl::primitive_attr add_to_output(Accumulate accumulate) {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);  // several threads execute one primitive
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

// A compiled primitive, which any thread may execute.
struct Product {
  dnnl::primitive primitive;
  size_t scratch_bytes;

  void execute(std::unordered_map<int, memory> arguments) const {
    omp_set_num_threads(1);  // OpenMP keeps a number for each thread
    const auto size = static_cast<memory::dim>(std::max<size_t>(1, scratch_bytes));
    const memory::desc scratch({size}, ElementType::u8, memory::format_tag::a);
    arguments.emplace(DNNL_ARG_SCRATCHPAD, view(scratch, cpu::part_scratch(scratch_bytes / sizeof(float) + 1)));
    dnnl::stream stream(engine());
    primitive.execute(stream, arguments);
    stream.wait();
  }
};

// Compiles what is missing; a reference holds until it is called with kMaxPrimitives in the map.
template <class Describe>
const Product& find_or_compile(std::map<Shape, Product>& products, const Shape& shape, const Describe& describe) {
  const auto found = products.find(shape);
  if (found != products.end()) return found->second;
  const auto description = describe();
  return products.emplace(shape, Product{dnnl::primitive(description), description.scratchpad_desc().get_size()})
      .first->second;
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
const memory& pack(const Parameter& weight, const memory::desc& stored, Packed& packed) {
  if (packed.data && packed.version == weight.version) return packed.data;
  omp_set_num_threads(1);
  memory source = view(stored, weight.value.raw());
  if (!packed.data) packed.data = memory(wanted_layout(stored.dims()), engine());
  dnnl::stream stream(engine());
  dnnl::reorder(source, packed.data).execute(stream, source, packed.data);
  stream.wait();
  packed.version = weight.version;
  return packed.data;
}

class OneDnnProducts final : public WeightProducts {
 public:
  explicit OneDnnProducts(ThreadPool* threads) : threads_(*threads) {}

  void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const override {
    const memory::desc stored = row_major(weight.value.dim(0), weight.value.dim(1), ElementType::f32);
    multiply(x, pack(weight, stored, kept_copies(weight).forward), y, Accumulate::no);
  }

  void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                         Accumulate accumulate) const override {
    const memory::desc stored = column_major(weight.value.dim(1), weight.value.dim(0), ElementType::f32);
    multiply(dy, pack(weight, stored, kept_copies(weight).input_grad), dx, accumulate);
  }

  void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const override {
    const int64_t padded_rows = (x.dim(0) + kRowStep - 1) / kRowStep * kRowStep;
    const auto x_floats = static_cast<size_t>(padded_rows * x.row_numel());
    const auto dy_floats = static_cast<size_t>(padded_rows * dy.row_numel());
    float* room = cpu::scratch_floats(x_floats + dy_floats);
    const memory inputs = view(row_major(padded_rows, dw.dim(1), kOperand), to_operand(x, padded_rows, room));
    const bf16* grads = to_operand(dy, padded_rows, room + x_floats);
    const int64_t tile = std::min(dw.dim(0), tile_extent(padded_rows * dw.dim(1), 4 * kRowStep));
    const auto product_of = [&](int64_t rows) -> const Product& {
      const Shape shape = {padded_rows, rows, dw.dim(1), accumulate, dw.dim(0)};
      return find_or_compile(weight_grads_, shape, [&] { return describe_weight_grad(shape); });
    };
    if (weight_grads_.size() + 2 > kMaxPrimitives) weight_grads_.clear();
    const int64_t num_whole = dw.dim(0) / tile;
    const int64_t rest = dw.dim(0) % tile;
    const Product& whole = product_of(tile);
    const Product* last = rest == 0 ? nullptr : &product_of(rest);
    threads_.run(num_whole + (rest == 0 ? 0 : 1), [&](int64_t i) {
      const Tensor part = dw.rows(i * tile, i < num_whole ? tile : rest);
      const memory source = view(column_major(part.dim(0), padded_rows, kOperand, dw.dim(0)), grads + i * tile);
      const memory output = view(row_major(part.dim(0), dw.dim(1), ElementType::f32), part.raw());
      (i < num_whole ? whole : *last)
          .execute({{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, inputs}, {DNNL_ARG_DST, output}});
    });
  }

 private:
  // `rows` in bf16 with zero rows behind, in `room` for padded_rows of floats.
  const bf16* to_operand(const Tensor& rows, int64_t padded_rows, float* room) const {
    auto* copy = reinterpret_cast<bf16*>(room);
    const auto* from = rows.data<float>();
    cpu::for_pieces(threads_, cpu::count_of(rows), 1,
                    [&](size_t first, size_t count) { round_to_bf16(from + first, copy + first, count); });
    std::fill(copy + cpu::count_of(rows), copy + padded_rows * rows.row_numel(), bf16{});
    return copy;
  }

  // out[rows] = in[rows] weight^T, or adds
  void multiply(const Tensor& in, const memory& weight, const Tensor& out, Accumulate accumulate) const {
    const bf16* operand = to_operand(in, in.dim(0), cpu::scratch_floats(cpu::count_of(in)));
    const memory::dims extents = weight.get_desc().dims();
    const int64_t even_rows = in.dim(0) / kRowStep * kRowStep;
    const int64_t tile = std::min<int64_t>(kMostRows, tile_extent(extents[0] * extents[1], kRowStep));
    std::vector<std::pair<int64_t, const Product*>> parts;  // first row, product
    if (products_.size() + 3 > kMaxPrimitives) products_.clear();
    for (int64_t first = 0; first < in.dim(0);) {
      const int64_t rows = first < even_rows ? std::min(tile, even_rows - first) : in.dim(0) - first;
      const Shape shape = {rows, extents[0], extents[1], accumulate};
      parts.emplace_back(
          first, &find_or_compile(products_, shape, [&] { return describe_product(shape, weight.get_desc()); }));
      first += rows;
    }
    threads_.run(std::ssize(parts), [&](int64_t i) {
      const auto [first, product] = parts[static_cast<size_t>(i)];
      const int64_t end = i + 1 < std::ssize(parts) ? parts[static_cast<size_t>(i) + 1].first : in.dim(0);
      const memory source = view(row_major(end - first, extents[1], kOperand), operand + first * extents[1]);
      const memory output =
          view(row_major(end - first, extents[0], ElementType::f32), out.rows(first, end - first).raw());
      product->execute({{DNNL_ARG_SRC, source}, {DNNL_ARG_WEIGHTS, weight}, {DNNL_ARG_DST, output}});
    });
  }

  ThreadPool& threads_;
  mutable std::map<Shape, Product> products_;
  mutable std::map<Shape, Product> weight_grads_;
};

}  // namespace

// oneDNN alone does not tell: it offers such products on any AVX-512, and without the instructions they are slower than fp32,
// with bits that depend on the number of rows.
bool multiplies_bf16() {
  constexpr auto kNeeded = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);  // a set of bits
  return cpu_multiplies_bf16() && (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & kNeeded) == kNeeded;
}

std::unique_ptr<WeightProducts> make_onednn_products(ThreadPool* threads) {
  return multiplies_bf16() ? std::make_unique<OneDnnProducts>(threads) : nullptr;
}

}  // namespace cadre
