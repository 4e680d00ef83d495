// SPDX-License-Identifier: Apache-2.0
#include "runtime/train/non_finite.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string_view>

#include "comm/base/check.hpp"
#include "comm/group/agreement.hpp"

namespace cadre {
namespace {

// When something is made in a step: weights were before it; layers go up in the forward pass, down in the backward pass.
enum class Era : uint64_t { weights, forward, loss, backward, never };

// The layer in the name of a parameter; -1 in front of all layers, `num_layers` behind them.
int64_t layer_of(const std::string& name, int64_t num_layers) {
  constexpr std::string_view kPrefix = "model.layers.";
  int64_t layer = 0;
  const char* end = name.data() + name.size();
  if (name.starts_with(kPrefix) && std::from_chars(name.data() + kPrefix.size(), end, layer).ec == std::errc()) {
    return layer;
  }
  return name.find("embed_tokens") != std::string::npos ? -1 : num_layers;
}

// The first find of this rank.
class Search {
 public:
  explicit Search(const Kernels& kernels) : kernels_(kernels) {}

  void look_at(const Tensor& tensor, Era era, int64_t place, const std::string& what) {
    if (time_of(era, place) >= time_ || !tensor.defined() || tensor.dtype() != DType::f32 || tensor.numel() == 0)
      return;
    if (!std::isfinite(kernels_.sum_squares(tensor))) note(era, place, what);
  }
  void look_at(double number, Era era, const std::string& what) {
    if (!std::isfinite(number)) note(era, 0, what);
  }
  void note(Era era, int64_t place, const std::string& what) {
    if (time_of(era, place) >= time_) return;
    time_ = time_of(era, place);
    what_ = what + " is not finite";
  }

  Account account() const { return {.text = what_, .numbers = {time_}}; }
  static Era era_of(uint64_t time) { return static_cast<Era>(time / kPlaces); }
  static constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();

 private:
  static constexpr uint64_t kPlaces = uint64_t{1} << 40;

  static uint64_t time_of(Era era, int64_t place) {
    return static_cast<uint64_t>(era) * kPlaces + static_cast<uint64_t>(place);
  }

  const Kernels& kernels_;
  uint64_t time_ = kNever;
  std::string what_;
};

// Places of the parts of a layer, in their order.
int64_t place_of(int64_t layer, int64_t part) { return 8 * (layer + 1) + part; }

void look_at_layer(const Block::Saved& saved, int64_t layer, Search& search) {
  const auto look = [&](const Tensor& tensor, int64_t part, const char* what) {
    search.look_at(tensor, Era::forward, place_of(layer, part), fmt::format("{} layer {}", what, layer));
  };
  look(saved.x, 0, "the input of");
  look(saved.ffn_norm.x, 1, "what attention makes in");
  look(saved.moe.x, 2, "the input of the mixture in");
  if (!saved.moe.router.scorer.not_finite.empty()) {
    search.note(Era::forward, place_of(layer, 3), fmt::format("a router logit of layer {}", layer));
  }
  for (const RoutedExperts::Saved* routed : saved.moe.routed()) {
    look(routed->expert_out, 4, "what experts of this rank make in");
  }
}

// Those that are not looked for are undefined.
using TensorOf = std::function<Tensor(const Parameter&)>;

void look_at_parameters(Worker& worker, int64_t num_layers, Search& search, Era era, const TensorOf& tensor_of) {
  constexpr int64_t kMost = int64_t{1} << 20;  // parameters of a layer on a rank
  int64_t index = 0;
  for (const Parameter* parameter : worker.store().parameters()) {
    const int64_t layer = layer_of(parameter->name(), num_layers);
    ++index;
    if (era == Era::backward) {
      search.look_at(tensor_of(*parameter), era, (num_layers - layer + 1) * kMost - index,
                     "the gradient of " + parameter->name());
    } else {
      search.look_at(tensor_of(*parameter), era, (layer + 1) * kMost + index, parameter->name());
    }
  }
}

// The earliest of all ranks.
NonFinite earliest(const Worker& worker, const Search& mine) {
  Agreement told(worker.world(), mine.account());
  worker.await(told.request());
  int first = 0;
  for (int rank = 1; rank < worker.world().size(); ++rank) {
    if (told.account_of(rank).numbers[0] < told.account_of(first).numbers[0]) first = rank;
  }
  const Account found = told.account_of(first);
  const uint64_t time = found.numbers[0];
  if (time == Search::kNever) {
    return {"all is finite on each rank when the step is repeated: a sum over ranks overflows, or a machine errs"};
  }
  return {fmt::format("rank {}: {}", first, found.text), Search::era_of(time) == Era::weights};
}

}  // namespace

NonFinite find_non_finite(Worker& worker, Executor& executor, StepWork work) {
  const ModelConfig& model = worker.model().config();
  Search search(worker.kernels());
  look_at_parameters(worker, model.num_hidden_layers, search, Era::weights,
                     [](const Parameter& parameter) { return parameter.value; });

  work.forwards_done = {};
  work.reduce_gradients = false;
  work.forward_done = [&](int /*micro_batch*/, const Stage& stage, const Stage::Saved& saved, const Tensor& y) {
    for (int64_t layer = 0; layer < model.num_hidden_layers + model.num_nextn_predict_layers; ++layer) {
      const Block::Saved* block = stage.saved_of(saved, static_cast<int>(layer));
      const Tensor* input = stage.recomputed_from(saved, static_cast<int>(layer));
      if (input != nullptr) {
        search.look_at(*input, Era::forward, place_of(layer, 0), fmt::format("the input of layer {}", layer));
      } else if (block != nullptr) {
        look_at_layer(*block, layer, search);
      }
    }
    search.look_at(y, Era::forward, place_of(stage.layers().last, 0), "the input of the stage after");
  };
  // Dropped ones of each pass, all others when all passes are over.
  const GradientShards& shards = worker.gradient_shards();
  work.gradients_done = [&](Stage& stage, int bucket) {
    std::set<const Parameter*> added;
    stage.each_parameter(bucket, [&](const Parameter& parameter) {
      if (shards.drops(parameter)) added.insert(&parameter);
    });
    look_at_parameters(worker, model.num_hidden_layers, search, Era::backward, [&](const Parameter& parameter) {
      return added.contains(&parameter) ? parameter.grad : Tensor();
    });
  };
  LocalStep local = empty_local_step(model);
  worker.forget_grads();
  executor.run(work, local, Overlap::off);
  search.look_at(local.loss_sum + local.mtp_loss_sum, Era::loss, "the loss");
  look_at_parameters(worker, model.num_hidden_layers, search, Era::backward,
                     [&](const Parameter& parameter) { return shards.drops(parameter) ? Tensor() : parameter.grad; });
  return earliest(worker, search);
}

}  // namespace cadre
