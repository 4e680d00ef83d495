// SPDX-License-Identifier: Apache-2.0
// Products with a weight, the part of a back end that comes in several precisions and from several libraries; private to
// the back ends. The three functions are those of kernels.hpp; the number of rows is at least 1.
#pragma once

#include "layers/kernels/kernels.hpp"

namespace cadre {

class WeightProducts {
 public:
  virtual ~WeightProducts() = default;
  virtual void linear(const Tensor& x, const Parameter& weight, const Tensor& y) const = 0;
  virtual void linear_input_grad(const Tensor& dy, const Parameter& weight, const Tensor& dx,
                                 Accumulate accumulate) const = 0;
  virtual void linear_weight_grad(const Tensor& x, const Tensor& dy, const Tensor& dw, Accumulate accumulate) const = 0;
};

// The same for groups of rows, in one call; some groups may have none. A group without rows clears its gradient, or leaves
// it.
class GroupedWeightProducts : public WeightProducts {
 public:
  virtual void grouped_linear(const Tensor& x, RowGroups groups, const Tensor& y) const = 0;
  virtual void grouped_linear_input_grad(const Tensor& dy, RowGroups groups, const Tensor& dx) const = 0;
  virtual void grouped_linear_weight_grad(const Tensor& x, const Tensor& dy, RowGroups groups,
                                          Accumulate accumulate) const = 0;
};

}  // namespace cadre
