// SPDX-License-Identifier: Apache-2.0
// What a back end does that has nothing better: groups of rows one after the other, the clock and the copies of the host.
#include "layers/kernels/kernels.hpp"

#include <algorithm>
#include <cstring>

#include "comm/base/check.hpp"
#include "comm/base/trace.hpp"
#include "layers/tensor/tensor.hpp"

namespace cadre {
namespace {

class HostClock final : public DeviceClock {
 public:
  void start() override { begin_ns_ = trace_clock_ns(); }
  double stop_ms() override { return static_cast<double>(trace_clock_ns() - begin_ns_) * 1e-6; }

 private:
  int64_t begin_ns_ = 0;
};

}  // namespace

std::unique_ptr<DeviceClock> Kernels::make_clock() const { return make_host_clock(); }

std::unique_ptr<DeviceClock> make_host_clock() { return std::make_unique<HostClock>(); }

void Kernels::copy(const Tensor& src, const Tensor& dst) const {
  if (src.bytes() > 0) std::memcpy(dst.raw(), src.raw(), src.bytes());
}

void Kernels::scale_columns(double factor, const Columns& src, const Columns& dst, Accumulate accumulate) const {
  const OnHost from(src.rows, memory());
  OnHost to(dst.rows, memory());
  const int64_t num_rows = src.rows.numel() / std::max<int64_t>(1, src.rows.dim(src.rows.num_dims() - 1));
  const auto place = [](const Tensor& rows, int64_t first, int64_t row, int64_t column) {
    return row * rows.dim(rows.num_dims() - 1) + first + column;
  };
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t column = 0; column < src.count; ++column) {
      const int64_t at = place(*to, dst.first, row, column);
      const double scaled = factor * element(*from, place(*from, src.first, row, column));
      set_element(*to, at, accumulate == Accumulate::yes ? element(*to, at) + scaled : scaled);
    }
  }
  to.put_back();
}

void Kernels::route(const RouteRule&, const Tensor&, const Tensor&, const RouteResult&) const { CADRE_ASSERT(false); }

void Kernels::route_grad(const RouteRule&, const Tensor&, const Tensor&, const Tensor&, const RouteSlopes&,
                         const Tensor&) const {
  CADRE_ASSERT(false);
}

void Kernels::grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const {
  for (const RowGroup& group : groups) {
    linear(x.rows(group.first, group.count), *group.weight, y.rows(group.first, group.count));
  }
}

void Kernels::grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const {
  for (const RowGroup& group : groups) {
    linear_input_grad(dy.rows(group.first, group.count), *group.weight, dx.rows(group.first, group.count),
                      Accumulate::no);
  }
}

void Kernels::grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                         Accumulate accumulate) const {
  for (const RowGroup& group : groups) {
    linear_weight_grad(x.rows(group.first, group.count), dy.rows(group.first, group.count), group.weight->grad,
                       accumulate);
  }
}

}  // namespace cadre
