// SPDX-License-Identifier: Apache-2.0
// A plugin with an own router and an own exchange.
//
//   cadre train RUN.toml model.plugin=libown_router.so model.router=plugin exchange.strategy=plugin
//
// The router: a token goes to the expert with its best score, and then to the experts behind that by number, in a ring. The
// exchange: that of Cadre, which says at its end what it sent.
#include <cadre/plugin.hpp>

#include <cstdio>
#include <memory>
#include <utility>

namespace {

class RingRouter final : public cadre::Selector {
 public:
  explicit RingRouter(const cadre::SelectOptions& options) : options_(options) {}

  int num_slots() const override { return options_.top_k; }

  cadre::Task<void> select(cadre::LaneContext& ctx, cadre::Routing& routing) const override {
    if (ctx.arena.is_dry_run()) co_return;  // the memory plan runs without numbers
    cadre::choose_best(ctx, routing.choice, 1, routing.ids);
    for (int64_t t = 0; t < routing.num_tokens(); ++t) {
      int32_t* ids = routing.ids.data<int32_t>() + t * options_.top_k;
      for (int k = 1; k < options_.top_k; ++k) ids[k] = ids[0] < 0 ? -1 : (ids[0] + k) % options_.num_experts;
    }
  }

 private:
  cadre::SelectOptions options_;
};

class TellingExchange final : public cadre::Exchange {
 public:
  explicit TellingExchange(const cadre::ExchangeSetup& setup) : flat_(cadre::make_exchange("flat", setup)) {}
  ~TellingExchange() override {
    std::fprintf(stderr, "own exchange: rank %d sent %lld bytes\n", rank(),
                 static_cast<long long>(flat_->traffic().between_ranks));
  }

  std::string_view name() const override { return "telling"; }
  int rank() const override { return flat_->rank(); }
  cadre::Traffic traffic() const override { return flat_->traffic(); }
  std::unique_ptr<cadre::Route> route(cadre::DispatchPlan plan) override { return flat_->route(std::move(plan)); }
  bool packs_later() const override { return flat_->packs_later(); }

 private:
  std::unique_ptr<cadre::Exchange> flat_;
};

}  // namespace

CADRE_PLUGIN()

cadre::Selector* cadre_make_selector(const cadre::SelectOptions& options) { return new RingRouter(options); }

cadre::Exchange* cadre_make_exchange(const cadre::ExchangeSetup& setup) { return new TellingExchange(setup); }
