// SPDX-License-Identifier: Apache-2.0
// The piece that most new routers replace: from what decides to the experts of each token. One rule, one file.
#pragma once

#include <memory>
#include <vector>

#include "layers/router/options.hpp"
#include "layers/router/routing.hpp"

namespace cadre {

class Selector {
 public:
  virtual ~Selector() = default;
  // The most experts a token can have: columns of ids.
  virtual int num_slots() const = 0;
  // Fills routing.ids [T, num_slots] from routing.choice, whose -infinities are never chosen: best first, ties to the lower
  // index, -1 where there is none. May be collective over the lane's data group: all ranks of it call together.
  virtual Task<void> select(LaneContext& ctx, Routing& routing) const = 0;
};

std::unique_ptr<Selector> make_selector(const SelectOptions& options);

#define CADRE_DECLARE_MAKER(name) std::unique_ptr<Selector> make_##name(const SelectOptions& options);
CADRE_SELECT_RULES(CADRE_DECLARE_MAKER)
#undef CADRE_DECLARE_MAKER
std::unique_ptr<Selector> make_by_kind(const SelectOptions& options);
std::unique_ptr<Selector> make_from_plugin(const SelectOptions& options);

// --- what rules share ------------------------------------------------------------------------------------------------

// The best `top_k` of choice [T,E] into the first columns of ids [T,slots], -1 elsewhere and where choice is -infinity.
void choose_best(Context& ctx, const Tensor& choice, int top_k, const Tensor& ids);
// -1 behind as many experts as the token may visit.
void limit_count(const SelectOptions& options, const TokenFacts& tokens, const Tensor& scores, const Tensor& ids);

}  // namespace cadre
