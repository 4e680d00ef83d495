// SPDX-License-Identifier: Apache-2.0
// A mixture whose experts are single projections that combine freely: by global id in turn gate projections G [F,H], up
// projections U [F,H] and down projections D [H,F]. A token visits equally many of each,
//   y = sum_d w_d D_d (f(sum_g w_g G_g x) * sum_u w_u U_u x), f the activation
// Gate and up projections get the token's row and give sums of width F back to its rank, which sends what it makes of them to
// the down projections: three dispatches instead of one.
#pragma once

#include <string>

#include "layers/moe/routed_experts.hpp"

namespace cadre {

class Projections {
 public:
  // Parameters `<prefix>.<id>.gate_proj.weight`, `.up_proj.weight` or `.down_proj.weight`, as id mod 3 is 0, 1 or 2. `map` is of
  // all ids, a multiple of 3 of them.
  Projections(const std::string& prefix, const RoutedOptions& options, const ExpertMap& map, int expert_rank);

  struct Saved {
    RoutedExperts::Saved gate, up, down;
    Tensor gate_up;  // [T,2F]
    Tensor inner;    // [T,F]
  };

  // As RoutedExperts. The slots of a token are K / 3 of each kind: gate, then up, then down.
  Task<Tensor> forward(LaneContext& ctx, Tensor x, Tensor ids, Tensor weights, Saved& saved,
                       RoutedExperts::Meanwhile meanwhile) const;
  Task<Tensor> backward(LaneContext& ctx, Saved& saved, Tensor dy, RoutedExperts::Meanwhile meanwhile,
                        RoutedExperts::Learned learned);
  void each_parameter(const ParameterVisitor& visit);

 private:
  FfnOptions ffn_;  // what the three are parts of
  RoutedExperts gate_, up_, down_;
};

}  // namespace cadre
