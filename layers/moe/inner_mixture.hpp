// SPDX-License-Identifier: Apache-2.0
// An expert that is a mixture itself: y = sum_j G(x)_j F_j(x), G the softmax over J inner experts, cut to the best K and
// renormalised where K > 1. With the outer weights that is the hierarchical mixture of Shazeer et al. 2017, appendix B:
// y = sum_i sum_j G(x)_i G_i(x)_j E_ij(x). All of it lives on the rank of the expert: nothing travels, and how evenly inner
// experts are used costs no rank more than another, so their gate has no balance loss.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "comm/exchange/plan.hpp"
#include "layers/moe/experts.hpp"

namespace cadre {

class InnerMixture {
 public:
  // Parameters `<prefix>.gate.weight` [J,H] and those of the feed-forward networks `<prefix>.experts.<j>`.
  InnerMixture(const std::string& prefix, const ExpertOptions& options);

  struct Saved {
    Linear::Saved gate;
    Tensor scores;        // [R,J]
    Tensor ids, weights;  // [R,K]
    ExpertBatch batch;
    Experts::Saved experts;
    Tensor out;  // [R K,H] in expert order
  };

  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;  // x, y [R,H]
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const;
  void weight_grad(Context& ctx, const Saved& saved);
  void each_parameter(const ParameterVisitor& visit);
  uint64_t version() const { return gate_.weight().version + experts_.version(); }

 private:
  void choose(Context& ctx, const Tensor& x, Saved& saved) const;

  ExpertOptions options_;
  Linear gate_;
  Experts experts_;
};

}  // namespace cadre
