// SPDX-License-Identifier: Apache-2.0
// What a back end does that has nothing better: groups of rows one after the other.
#include "layers/kernels/kernels.hpp"

namespace cadre {

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
