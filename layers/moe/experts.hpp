// SPDX-License-Identifier: Apache-2.0
// The routed experts that live on this rank, over rows in expert order: one after the other, or, where the back end is
// better at that and they are of one shape, all at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/exchange/expert_map.hpp"
#include "layers/moe/expert.hpp"
#include "layers/moe/expert_cache.hpp"
#include "layers/nn/ffn.hpp"

namespace cadre {

// The routed experts of a rank that are feed-forward networks of one shape, all at once: each of their products is one call
// for all rows, ragged and without padding. For back ends that Kernels::groups_products.

class ExpertGroup {
 public:
  // `weights` are those of each network: the first product's, then the second's.
  ExpertGroup(const FfnOptions& options, std::span<Parameter* const> weights);

  struct Saved {
    std::vector<int32_t> offsets;  // [experts + 1]: expert e works on rows offsets[e] .. offsets[e+1]
    Tensor x, up_out, inner;       // [S,H], [S,2F] or [S,F], [S,F]
    Tensor dy, d_up_out;
  };

  // x, y, dy, dx [S,H]; the offsets in `saved` are the caller's.
  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const;
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const;
  void weight_grad(Context& ctx, const Saved& saved);

 private:
  FfnOptions options_;
  std::vector<Parameter*> up_, down_;  // of each expert
};

class Experts {
 public:
  // One Expert `<prefix>.<global id>` for each that `map` gives to `rank`.
  Experts(const std::string& prefix, const ExpertMap& map, int rank, const ExpertOptions& options);

  struct Saved {
    std::vector<int32_t> offsets;  // [experts + 1]: expert e works on places offsets[e] .. offsets[e+1]
    std::vector<Expert*> chosen;   // these experts, where they are not all of this rank and no others
    std::vector<std::unique_ptr<Expert::Saved>> experts;
    std::optional<ExpertGroup::Saved> group;  // instead of those before, where all ran at once
    Tensor tokens;  // i64[S], for dropout: the number of each place's token in the global batch; undefined: no dropout
  };

  int size() const { return static_cast<int>(experts_.size()); }

  // Gives the experts of this rank the names and holders that another map has for it; as many as before, all of one shape.
  // An expert that stays keeps its parameters. Each other one takes over the parameters, and so the memory, of one that
  // leaves: the caller fills them.
  void relocate(const ExpertMap& map, int rank);
  // An expert that relocate() would let another one take the place of; ids are those of the map.
  struct Successor {
    int index;  // here
    int id;     // of the one that comes
  };
  std::vector<Successor> successors(const ExpertMap& map, int rank) const;
  // What relocate() would name a parameter of the expert at `index`.
  std::string name_in(const Parameter& parameter, const Successor& successor) const;

  // Place p reads rows[place_row[p]], as wide as the experts read them; place_row i32[S]. Experts that run one after the other have their rows
  // gathered just before their products, so that they are still in cache. y [S,out].
  // With a cache, for which there is no backward pass, what it knows is not computed again.
  Tensor forward(Context& ctx, const Rows& rows, const Tensor& place_row, Saved& saved,
                 ExpertCache* cache = nullptr) const;
  Tensor input_grad(Context& ctx, Saved& saved, const Tensor& dy) const;  // dy [S,out], dx [S,in]
  // So many parts, an expert each or all at once; in any order.
  int num_weight_parts(const Saved& saved) const {
    return saved.group ? 1 : static_cast<int>(saved.offsets.size()) - 1;
  }
  void weight_grad(Context& ctx, const Saved& saved, int part);
  void each_parameter(const ParameterVisitor& visit);
  void each_parameter(int index, const ParameterVisitor& visit) {
    experts_[static_cast<size_t>(index)]->each_parameter(visit);
  }
  const Expert& expert(int index) const { return *experts_[static_cast<size_t>(index)]; }
  Expert* own(int index) const { return experts_[static_cast<size_t>(index)].get(); }
  // Moves on whenever a weight of one of them changes.
  uint64_t version() const;

 private:
  Expert& at(const Saved& saved, size_t e) const { return saved.chosen.empty() ? *experts_[e] : *saved.chosen[e]; }
  void run(Context& ctx, size_t expert, const Tensor& x, Saved& saved, const Tensor& y, ExpertCache* cache) const;

  void name(size_t index, const ExpertMap& map, int id);
  void make_group();

  std::string prefix_;
  ExpertOptions options_;
  int64_t width_in_, width_out_;
  std::vector<int> ids_;  // in the map, ascending
  std::vector<std::unique_ptr<Expert>> experts_;
  std::optional<ExpertGroup> group_;  // of all of them, where they are of one shape
};

}  // namespace cadre
