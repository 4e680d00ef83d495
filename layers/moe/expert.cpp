// SPDX-License-Identifier: Apache-2.0
#include "layers/moe/expert.hpp"

#include "layers/moe/inner_mixture.hpp"

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

FfnOptions ffn_of_expert(const ExpertOptions& options, int id) {
  const int kind = options.kinds == ExpertKinds::typed ? id % 3 : 0;
  if (kind == 0) return options.ffn;
  FfnOptions ffn = options.ffn;
  ffn.activation = Activation::gelu;
  ffn.width = kind == 1 ? 2 * ffn.width : ffn.width / 2;
  return ffn;
}

}  // namespace

std::unique_ptr<Expert> make_expert(const std::string& prefix, const ExpertOptions& options, int id) {
  if (options.kinds == ExpertKinds::mixture) return std::make_unique<ExpertOf<InnerMixture>>(prefix, options);
  return std::make_unique<ExpertOf<Ffn>>(prefix, ffn_of_expert(options, id));
}

ExpertWeights weights_of_expert(const ExpertOptions& options, int id) {
  const FfnOptions ffn = ffn_of_expert(options, id);
  const int64_t matrices = ffn.activation == Activation::silu ? 3 : 2;
  const int64_t one = matrices * ffn.hidden * ffn.width;
  if (options.kinds != ExpertKinds::mixture) return {one, one};
  const int64_t gate = options.inner_experts * ffn.hidden;
  return {gate + options.inner_experts * one, gate + options.inner_top_k * one};
}

}  // namespace cadre
