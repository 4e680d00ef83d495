// SPDX-License-Identifier: Apache-2.0
// The shared expert of a mixture, y = c FFN(x), or y = sigmoid(w x) FFN(x) with a gate for each token (Qwen2-MoE).
#pragma once

#include <optional>
#include <string>

#include "layers/nn/ffn.hpp"

namespace cadre {

struct SharedExpertOptions {
  FfnOptions ffn = {};
  double scale = 1.0;          // c; 1 with a gate
  std::string gate_name = "";  // of the gate; empty: none
};

class SharedExpert {
 public:
  // The parameters of an Ffn with that prefix, and `<gate_name>.weight` [1,H].
  SharedExpert(const std::string& prefix, const SharedExpertOptions& options);

  struct Saved {
    Ffn::Saved ffn;
    Linear::Saved gate;
    Tensor inner;  // [T,H]: FFN(x), with a gate
    Tensor g;      // [T,1]: sigmoid(w x)
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

 private:
  double scale_;
  Ffn ffn_;
  std::optional<Linear> gate_;
};

}  // namespace cadre
