// SPDX-License-Identifier: Apache-2.0
// What a module needs when it talks to other ranks: the context of its micro-batch, and the lane that carries it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "comm/exchange/dispatch.hpp"
#include "comm/job/poll.hpp"
#include "comm/progress/deferred.hpp"
#include "comm/progress/task.hpp"
#include "layers/nn/linear.hpp"
#include "layers/router/token_facts.hpp"

namespace cadre {

class ExpertCache;

// What rows look like on their way, in both passes: to the experts (dispatch), and back (combine).
struct WireFormats {
  Wire dispatch = Wire::same;
  Wire combine = Wire::same;
};

// What routers saw, over the layers.
struct RoutedTokens {
  int64_t tokens = 0;
  int64_t rerouted = 0;                            // of them, those whose best expert is dead
  std::map<int, std::vector<int64_t>> slots = {};  // by layer: [E], that routers gave each expert
};

struct LaneContext : Context {
  Lane& lane;
  Exchange& exchange;  // of this lane
  CombineMode combine = CombineMode::partial;
  WireFormats wire = {};
  double token_scale = 1.0;           // 1 / tokens of the global batch; balance losses are means over it
  bool training = true;               // a backward pass follows: the balance loss is wanted
  DeferredQueue* deferred = nullptr;  // where weight gradients wait for their time; nullptr: they are computed at once
  bool sums_experts = true;           // gradients of experts are summed over ranks, as the others are
  ExpertCache* expert_cache = nullptr;  // at inference: outputs of experts that were computed before
  RoutedTokens* routed = nullptr;       // at inference: added to
  TokenFacts tokens = {};
  // Complete when the values of a bucket of the stage are; empty: they are. See Stage::each_parameter.
  std::function<Request&(int bucket)> values_of = {};
  // 1 / (sum of the weights of the targets of the global batch): losses of targets are means over these. Empty: token_scale.
  std::optional<double> loss_scale = {};
  bool decoding = false;  // later tokens of these sequences are not known yet
};

// Computes a weight gradient, now or when its turn comes. What `run` refers to must live until then. `phase` is a string
// literal.
inline void defer(LaneContext& ctx, const char* phase, std::function<void()> run) {
  Position at = ctx.lane.position;
  at.phase = phase;
  if (ctx.deferred != nullptr) return ctx.deferred->push(at, std::move(run));
  const TraceActivity activity(ctx.lane.tracer(), TraceKind::compute, at);
  run();
}

// The same of an expert. Where no other rank adds to its gradient the sums of other gradients begin before it is computed.
inline void defer_experts(LaneContext& ctx, const char* phase, std::function<void()> run) {
  if (ctx.sums_experts || ctx.deferred == nullptr) return defer(ctx, phase, std::move(run));
  Position at = ctx.lane.position;
  at.phase = phase;
  ctx.deferred->push_last(at, std::move(run));
}

// All that has been deferred so far, also by others.
inline void run_deferred(LaneContext& ctx) {
  if (ctx.deferred != nullptr) ctx.deferred->run_first(ctx.deferred->num_pushed(), ctx.lane.tracer());
}

}  // namespace cadre
