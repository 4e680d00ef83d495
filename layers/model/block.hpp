// SPDX-License-Identifier: Apache-2.0
// One transformer layer: h = x + attention(norm(x)); y = h + ffn(norm(h)), where ffn is dense or a mixture. With
// norm_position = post: h = norm(x + attention(x)); y = norm(h + ffn(h)). With ffn_highway a dense ffn is g FFN(n) +
// (1 - g) n, and a mixture m is followed by g FFN(m) + (1 - g) m.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "layers/model/config.hpp"
#include "layers/model/self_attention.hpp"
#include "layers/moe/moe_layer.hpp"
#include "layers/nn/ffn.hpp"
#include "layers/nn/norm.hpp"

namespace cadre {

// The norm that the model uses everywhere.
NormOptions norm_options(const ModelConfig& config);

// "model.layers.<index>.<part>", as Hugging Face has it.
std::string layer_name(int index, std::string_view part);

class Block {
 public:
  // Layer `index` of the model, with those experts that `map` gives to `expert_rank`.
  Block(const ModelConfig& config, int index, const ExpertMap& map, int expert_rank);

  struct Saved {
    Tensor x;             // the input
    Sequences sequences;  // of the forward pass
    Norm::Saved attention_norm, ffn_norm;
    SelfAttention::Saved attention;
    Ffn::Saved ffn;       // dense layer
    MoeLayer::Saved moe;  // mixture
    HighwayFfn::Saved highway;
  };

  // x, y [T,H]. `saved` and `ctx` must outlive the task.
  Task<Tensor> forward(LaneContext& ctx, Tensor x, Sequences sequences, Saved& saved) const;
  // The next tokens of sequences with a cache, which holds them afterwards.
  Task<Tensor> decode(LaneContext& ctx, Tensor x, NextTokens tokens, KvCache& cache) const;
  // dy [T,H] to dx [T,H], which the caller gives. Weight gradients go to ctx.deferred; until they have run, dy, dx, `ctx`
  // and `saved` must stay as they are.
  Task<void> backward(LaneContext& ctx, Saved& saved, Tensor dy, Tensor dx);
  void each_parameter(const ParameterVisitor& visit);

  bool is_moe() const { return moe_.has_value(); }
  MoeLayer& moe() { return *moe_; }
  const SelfAttention& attention() const { return attention_; }

 private:
  Tensor attend(LaneContext& ctx, Saved& saved) const;
  Tensor forget_attention(LaneContext& ctx, Saved& saved) const;
  Tensor attention_part(LaneContext& ctx, const Tensor& x, Saved& saved,
                        const std::function<Tensor(const Tensor&)>& attend) const;
  Task<Tensor> ffn_grad(LaneContext& ctx, Saved& saved, Tensor dy);
  Task<Tensor> ffn_part(LaneContext& ctx, Tensor h, Saved& saved) const;

  int index_;
  bool is_post_;
  Norm attention_norm_;
  SelfAttention attention_;
  Norm ffn_norm_;
  std::optional<Ffn> ffn_;
  std::optional<MoeLayer> moe_;
  std::optional<HighwayFfn> highway_;
};

}  // namespace cadre
