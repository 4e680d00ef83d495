// SPDX-License-Identifier: Apache-2.0
#include "layers/nn/low_rank.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "comm/base/random.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

bool drops(const LowRank& added, const DropoutRows& dropout) { return added.dropout > 0.0 && dropout.rows.defined(); }

Tensor take_rows(Context& ctx, int64_t rows, int64_t width) {
  return ctx.arena.take("adapter", ctx.dtype, {rows, width});
}

// d(x)
Tensor kept_of(Context& ctx, const LowRank& added, const DropoutRows& dropout, const Tensor& x) {
  if (!drops(added, dropout)) return x;
  const Tensor kept = take_rows(ctx, x.dim(0), x.dim(1));
  if (!ctx.arena.is_dry_run()) drop_elements(ctx.kernels, dropout, added.dropout, added.a.name(), x, kept);
  return kept;
}

// h from d(x)
Tensor narrow_rows(Context& ctx, const LowRank& added, const Tensor& kept) {
  const Tensor h = take_rows(ctx, kept.dim(0), added.a.value.dim(0));
  ctx.kernels.linear(kept, added.a, h);
  return h;
}

Columns all_of(const Tensor& rows) { return {rows, 0, rows.dim(1)}; }

// s times the columns of dy that belong to the rows of the addition.
Tensor scaled_part(Context& ctx, const LowRank& added, const Tensor& dy) {
  const int64_t width = added.b.value.dim(0);
  const Tensor part = take_rows(ctx, dy.dim(0), width);
  ctx.kernels.scale_columns(added.scale, {dy, added.first_row, width}, all_of(part), Accumulate::no);
  return part;
}

}  // namespace

void add_low_rank(Context& ctx, const LowRank& added, const DropoutRows& dropout, const Tensor& x, const Tensor& y) {
  const ArenaScope scope(ctx.arena);
  const int64_t width = added.b.value.dim(0);
  const Tensor h = narrow_rows(ctx, added, kept_of(ctx, added, dropout, x));
  const Tensor delta = take_rows(ctx, x.dim(0), width);
  ctx.kernels.linear(h, added.b, delta);
  ctx.kernels.scale_columns(added.scale, all_of(delta), {y, added.first_row, width}, Accumulate::yes);
}

Tensor add_low_rank_input_grad(Context& ctx, const LowRank& added, const DropoutRows& dropout, const Tensor& dy,
                               const Tensor& dx) {
  const Tensor dh = take_rows(ctx, dy.dim(0), added.a.value.dim(0));
  const ArenaScope scope(ctx.arena);
  ctx.kernels.linear_input_grad(scaled_part(ctx, added, dy), added.b, dh, Accumulate::no);
  if (!drops(added, dropout)) {
    ctx.kernels.linear_input_grad(dh, added.a, dx, Accumulate::yes);
    return dh;
  }
  const Tensor d_kept = take_rows(ctx, dx.dim(0), dx.dim(1));
  ctx.kernels.linear_input_grad(dh, added.a, d_kept, Accumulate::no);
  if (!ctx.arena.is_dry_run()) drop_elements(ctx.kernels, dropout, added.dropout, added.a.name(), d_kept, d_kept);
  ctx.kernels.add(dx, d_kept, dx);
  return dh;
}

void low_rank_weight_grad(Context& ctx, LowRank& added, const DropoutRows& dropout, const Tensor& x, const Tensor& dh,
                          const Tensor& dy) {
  const ArenaScope scope(ctx.arena);
  const Tensor kept = kept_of(ctx, added, dropout, x);
  const Tensor h = narrow_rows(ctx, added, kept);
  const Tensor part = scaled_part(ctx, added, dy);
  if (!added.a.frozen) {
    write_grad(added.a,
               [&](Accumulate accumulate) { ctx.kernels.linear_weight_grad(kept, dh, added.a.grad, accumulate); });
  }
  if (!added.b.frozen) {
    write_grad(added.b,
               [&](Accumulate accumulate) { ctx.kernels.linear_weight_grad(h, part, added.b.grad, accumulate); });
  }
}

void drop_elements(const Kernels& kernels, const DropoutRows& dropout, double rate, const std::string& name,
                   const Tensor& x, const Tensor& y) {
  Memory& memory = kernels.memory();
  const OnHost from(x, memory);
  OnHost to(y, memory);
  const int64_t width = x.dim(1);
  // A block of random bits decides on 8 elements, each with 16 of them.
  constexpr int64_t kDrawn = 8;
  constexpr uint64_t kWhole = 65536;
  const auto least = static_cast<uint64_t>(std::llround(rate * static_cast<double>(kWhole)));
  const double scale = 1.0 / (1.0 - rate);
  std::array<uint64_t, 2> block = {};
  const Random random(dropout.seed, "adapter dropout", hash_name(fmt::format("{} step {}", name, dropout.step)));
  const auto draws = static_cast<uint64_t>((width + kDrawn - 1) / kDrawn);
  for (int64_t row = 0; row < x.dim(0); ++row) {
    const auto number = static_cast<uint64_t>(dropout.rows.data<int64_t>()[row]);
    for (int64_t i = 0; i < width; ++i) {
      if (i % kDrawn == 0) block = random.block(number * draws + static_cast<uint64_t>(i / kDrawn));
      const uint64_t drawn = block[static_cast<size_t>(i % kDrawn / 4)] >> (16 * (i % 4)) & (kWhole - 1);
      set_element(*to, row * width + i, drawn >= least ? element(*from, row * width + i) * scale : 0.0);
    }
  }
  to.put_back();
}

}  // namespace cadre
