// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert.hpp"

#include "layers/moe/inner_mixture.hpp"
#include "layers/nn/linear.hpp"

namespace cadre {
namespace {

// A module of the usual form as an expert.
template <class Module>
class ExpertOf final : public Expert {
 public:
  template <class... Args>
  explicit ExpertOf(Args&&... args) : module_(std::forward<Args>(args)...) {}

  std::unique_ptr<Saved> forward_into(Context& ctx, const Tensor& x, const Tensor& y) const override {
    auto kept = std::make_unique<Kept>();
    module_.forward_into(ctx, x, kept->module, y);
    return kept;
  }
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const override {
    module_.input_grad_into(ctx, static_cast<Kept&>(saved).module, dy, dx);
  }
  void weight_grad(Context& ctx, const Saved& saved) override {
    module_.weight_grad(ctx, static_cast<const Kept&>(saved).module);
  }
  void each_parameter(const ParameterVisitor& visit) override { module_.each_parameter(visit); }
  uint64_t version() const override { return module_.version(); }

 private:
  struct Kept final : Saved {
    typename Module::Saved module;
  };

  Module module_;
};

// A product and nothing else.
class SingleProjection {
 public:
  SingleProjection(const std::string& prefix, const ExpertOptions& options) : linear_(weight(prefix, options)) {}

  using Saved = Linear::Saved;

  void forward_into(Context& ctx, const Tensor& x, Saved& saved, const Tensor& y) const {
    linear_.forward_into(ctx, x, saved, y);
  }
  void input_grad_into(Context& ctx, Saved& saved, const Tensor& dy, const Tensor& dx) const {
    linear_.input_grad_into(ctx, saved, dy, dx, Accumulate::no);
  }
  void weight_grad(Context& ctx, const Saved& saved) { linear_.weight_grad(ctx, saved); }
  void each_parameter(const ParameterVisitor& visit) { linear_.each_parameter(visit); }
  uint64_t version() const { return linear_.weight().version; }

 private:
  static Parameter weight(const std::string& prefix, const ExpertOptions& options) {
    const FfnNames& names = options.ffn.names;
    const std::string_view of_kind[] = {names.gate, names.up, names.down};
    const std::string name = fmt::format("{}.{}.weight", prefix, of_kind[static_cast<size_t>(options.projection)]);
    return make_weight({{name, options.width_out()}}, options.width_in(), options.ffn.init_std, options.ffn.placement);
  }

  Linear linear_;
};

}  // namespace

std::unique_ptr<Expert> make_expert(const std::string& prefix, const ExpertOptions& options, int id) {
  if (options.kinds == ExpertKinds::mixture) return std::make_unique<ExpertOf<InnerMixture>>(prefix, options);
  if (options.kinds == ExpertKinds::projections) return std::make_unique<ExpertOf<SingleProjection>>(prefix, options);
  return std::make_unique<ExpertOf<Ffn>>(prefix, ffn_of_expert(options, id));
}

FfnOptions ffn_of_expert(const ExpertOptions& options, int id) {
  const int kind = options.kinds == ExpertKinds::typed ? id % 3 : 0;
  if (kind == 0) return options.ffn;
  FfnOptions ffn = options.ffn;
  ffn.activation = Activation::gelu;
  ffn.gated = false;
  ffn.width = kind == 1 ? 2 * ffn.width : ffn.width / 2;
  return ffn;
}

ExpertWeights weights_of_expert(const ExpertOptions& options, int id) {
  const FfnOptions ffn = ffn_of_expert(options, id);
  if (options.kinds == ExpertKinds::projections) return {ffn.hidden * ffn.width, ffn.hidden * ffn.width};
  const int64_t matrices = ffn.gated ? 3 : 2;
  const int64_t one = matrices * ffn.hidden * ffn.width;
  if (options.kinds != ExpertKinds::mixture) return {one, one};
  const int64_t gate = options.inner_experts * ffn.hidden;
  return {gate + options.inner_experts * one, gate + options.inner_top_k * one};
}

}  // namespace cadre
