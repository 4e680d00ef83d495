// SPDX-License-Identifier: Apache-2.0
// Normalisation of rows: RMSNorm (the default of DeepSeek-V3) or LayerNorm (GPT-2).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "layers/nn/linear.hpp"

namespace cadre {

enum class NormKind { rms, layer };

struct NormOptions {
  NormKind kind = NormKind::rms;
  int64_t hidden = 0;
  double epsilon = 1e-6;
};

// Parameters: `<prefix>.weight` [H] and, for LayerNorm, `<prefix>.bias` [H].
class Norm {
 public:
  Norm(const std::string& prefix, const NormOptions& options);

  struct Saved {
    Tensor x;
    Tensor mean;  // LayerNorm only
    Tensor rstd;
    Tensor dy;
  };

  Tensor forward(Context& ctx, const Tensor& x, Saved& saved) const;  // x, y [T,H]
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);

 private:
  NormOptions options_;
  Parameter weight_;
  std::optional<Parameter> bias_;  // LayerNorm only
};

}  // namespace cadre
