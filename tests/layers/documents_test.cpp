// SPDX-License-Identifier: Apache-2.0
// Documents packed in one sequence compute what they compute alone: attention on every back end, and a whole model with MTP
// modules, its losses and its gradients.
#include "layers/nn/documents.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "comm/progress/engine.hpp"
#include "layers/model/model.hpp"
#include "layers/tensor/parameter.hpp"
#include "tests/support/fast_back_ends.hpp"
#include "tests/support/ranks.hpp"
#include "tests/support/tensors.hpp"

namespace cadre::documents_test {
namespace {

using Lengths = std::vector<int64_t>;

TEST(Documents, RunsJoinNeighboursOfEqualLength) {
  const auto shown = [](const Sequences& sequences) {
    std::vector<Lengths> runs;
    for (const DocumentRun& run : document_runs(sequences)) runs.push_back({run.first, run.batch, run.length});
    return runs;
  };
  EXPECT_EQ(shown({3, 4, {}}), (std::vector<Lengths>{{0, 3, 4}}));
  EXPECT_EQ(shown({2, 4, {}, {2, 2, 4}}), (std::vector<Lengths>{{0, 2, 2}, {4, 1, 4}}));
  EXPECT_EQ(shown({2, 4, {}, {1, 3, 3, 1}}), (std::vector<Lengths>{{0, 1, 1}, {1, 2, 3}, {7, 1, 1}}));
  EXPECT_EQ(without_last_tokens({2, 4, {}, {1, 3, 3, 1}}), (Lengths{1, 2, 3}));
  EXPECT_EQ(without_last_tokens({2, 4, {}}), Lengths{});
}

class DocumentAttention : public testing::TestWithParam<test::FastBackEnd> {};

// Lengths: one token, a few (which the CPU attends one by one), more than a tile of 64 rows.
TEST_P(DocumentAttention, HasTheValuesOfEachDocumentAlone) {
  const std::unique_ptr<Kernels> kernels = GetParam().make();
  CADRE_SKIP_WITHOUT(kernels);
  const Lengths lengths = {1, 7, 70, 70, 2, 150};
  const int64_t num_tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
  constexpr int64_t kHidden = 16;
  Arena arena(Arena::Mode::real, /*poison=*/true, kernels->memory());
  Context ctx{*kernels, arena, DType::f32};
  CausalAttention attention("attention", {.hidden = kHidden,
                                          .num_heads = 4,
                                          .num_kv_heads = 2,
                                          .head_dim = 4,
                                          .rope = plain_rope(1e4, 4, RopeLayout::halves),
                                          .init_std = 0.5});
  ParameterStore store;
  store.add_all(attention);
  store.allocate(DType::f32, /*with_grad=*/true, /*dry_run=*/false, kernels->memory());
  store.initialise(3);
  const auto filled = [&](double factor) {
    const Tensor tensor = arena.take("test", DType::f32, {num_tokens, kHidden});
    kernels->synchronize();
    for (int64_t i = 0; i < tensor.numel(); ++i) set_element(tensor, i, std::sin(factor * static_cast<double>(i)));
    return tensor;
  };
  const Tensor x = filled(0.7);
  const Tensor dy = filled(1.3);
  const auto run = [&](const Tensor& rows, const Tensor& d_rows, const Sequences& shape) {
    Sequences sequences = shape;
    sequences.positions = arena.take_host("test", DType::i32, {rows.dim(0)});
    fill_positions(sequences, 0);
    CausalAttention::Saved saved;
    const Tensor y = attention.forward(ctx, rows, sequences, saved);
    const Tensor d_in = attention.input_grad(ctx, saved, d_rows);
    kernels->synchronize();
    std::vector<double> values = test::values_of(y);
    const std::vector<double> dx = test::values_of(d_in);
    values.insert(values.end(), dx.begin(), dx.end());
    return values;
  };
  const std::vector<double> packed = run(x, dy, {1, num_tokens, {}, lengths});
  const std::vector<double> mixed = run(x, dy, {1, num_tokens, {}});
  const size_t half = packed.size() / 2;
  int64_t first = 0;
  double leak = 0.0;
  for (const int64_t length : lengths) {
    const std::vector<double> alone = run(x.rows(first, length), dy.rows(first, length), {1, length, {}});
    for (size_t i = 0; i < alone.size(); ++i) {
      const bool is_grad = i >= alone.size() / 2;
      const size_t place = static_cast<size_t>(first * kHidden) + (is_grad ? i - alone.size() / 2 + half : i);
      // Projections of more rows may use other products: a few units in the last place of sums near 1.
      ASSERT_NEAR(packed[place], alone[i], 1e-5)
          << "document of " << length << (is_grad ? " gradient " : " output ") << i;
      leak = std::max(leak, std::abs(mixed[place] - alone[i]));
    }
    first += length;
  }
  EXPECT_GT(leak, 1e-2) << "without documents the numbers are the same: nothing is tested";
}

INSTANTIATE_TEST_SUITE_P(BackEnds, DocumentAttention, test::each_fast_back_end(), test::name_of_back_end);

// A model on one rank in fp64: latent attention, a dense layer, a mixture, two MTP modules.
ModelConfig model_config() {
  ModelConfig config;
  config.model_type = "deepseek_v3";
  config.vocab_size = 13;
  config.hidden_size = 8;
  config.num_hidden_layers = 2;
  config.num_attention_heads = config.num_key_value_heads = 2;
  config.kv_lora_rank = 3;
  config.qk_nope_head_dim = 3;
  config.qk_rope_head_dim = 4;
  config.v_head_dim = 5;
  config.max_position_embeddings = 16;
  config.initializer_range = 0.4;
  config.intermediate_size = 6;
  config.moe_intermediate_size = 4;
  config.n_routed_experts = 4;
  config.num_experts_per_tok = 2;
  config.n_shared_experts = 1;
  config.first_k_dense_replace = 1;
  config.norm_topk_prob = true;
  config.num_nextn_predict_layers = 2;
  config.aux_loss_alpha = 0.0;
  check(config);
  return config;
}

struct Outcome {
  double loss_sum = 0.0;
  double mtp_loss_sum = 0.0;
  std::vector<double> gradients;
};

class ModelRun {
 public:
  explicit ModelRun(Communicator& world)
      : config_(model_config()),
        lane_(0, world.duplicate("expert"), world.duplicate("data")),
        model_(config_, make_expert_map(config_, 1), 0),
        exchange_(make_exchange("flat", {lane_.expert_group(), Topology::uniform(1, world.size())})),
        kernels_(make_reference_kernels()),
        ctx_{{*kernels_, arena_, DType::f64}, lane_, *exchange_} {
    store_.add_all(model_);
    store_.allocate(DType::f64, /*with_grad=*/true, /*dry_run=*/false);
    store_.initialise(5);
  }

  // Of `count` sequences of one length; empty weights: all are 1.
  Outcome run(std::vector<int32_t> ids, std::vector<int32_t> targets, int64_t count, Lengths documents,
              std::vector<float> weights) {
    arena_.release({});
    store_.forget_grads();
    const auto total = static_cast<int64_t>(ids.size());
    std::vector<int32_t> positions(ids.size());
    const auto view = [&](std::vector<int32_t>& values) { return Tensor(values.data(), DType::i32, {total}); };
    TokenBatch batch{view(ids), view(targets), {count, total / count, view(positions), std::move(documents)}, {}};
    if (!weights.empty()) batch.weights = Tensor(weights.data(), DType::f32, {total});
    fill_positions(batch.sequences, 0);
    ctx_.tokens.sequence_length = total / count;
    ctx_.loss_scale = 0.25;
    Model::Saved saved;
    saved.stages.resize(1);
    Outcome outcome;
    Task<void> task = passes(batch, saved, outcome);
    Engine().run(lane_, task);
    store_.complete_grads();
    for (const Parameter* parameter : store_.parameters()) {
      const std::vector<double> values = test::values_of(parameter->grad);
      outcome.gradients.insert(outcome.gradients.end(), values.begin(), values.end());
    }
    return outcome;
  }

 private:
  Task<void> passes(TokenBatch batch, Model::Saved& saved, Outcome& outcome) {
    Task<Stage::Output> forward = model_.stage(0).forward(ctx_, batch, Tensor(), saved.stages.front());
    const Stage::Output output = co_await forward;
    outcome.loss_sum = output.loss_sum;
    outcome.mtp_loss_sum = output.mtp_loss_sum;
    Task<void> backward = model_.backward(ctx_, saved);
    co_await backward;
  }

  ModelConfig config_;
  Lane lane_;
  Model model_;
  std::unique_ptr<Exchange> exchange_;
  std::unique_ptr<Kernels> kernels_;
  Arena arena_{Arena::Mode::real, /*poison=*/true};
  LaneContext ctx_;
  ParameterStore store_;
};

// Two sequences of seven tokens: documents of 3, 1, 3 and of 7.
struct Packed {
  Lengths documents = {3, 1, 3, 7};
  std::vector<int32_t> ids, targets;
  std::vector<float> weights;

  Packed() {
    for (int32_t t = 0; t < 14; ++t) {
      ids.push_back((5 * t + 2) % 13);
      targets.push_back(t == 2 || t == 3 || t == 9 ? -1 : (7 * t + 1) % 13);
      weights.push_back(t < 5 ? 0.5F : t < 8 ? 2.0F : 1.0F);
    }
  }
};

void expect_the_sum_of_documents(const Packed& packed, bool weighted) {
  test::on_one_rank([&](Communicator alone) {
    ModelRun model(alone);
    const std::vector<float> all_weights = weighted ? packed.weights : std::vector<float>();
    const Outcome whole = model.run(packed.ids, packed.targets, 2, packed.documents, all_weights);
    Outcome sum;
    sum.gradients.assign(whole.gradients.size(), 0.0);
    std::ptrdiff_t first = 0;
    for (const int64_t length : packed.documents) {
      const auto part = [&](const auto& values) {
        using Values = std::decay_t<decltype(values)>;
        return values.empty() ? Values() : Values(values.begin() + first, values.begin() + first + length);
      };
      const Outcome one = model.run(part(packed.ids), part(packed.targets), 1, {}, part(all_weights));
      sum.loss_sum += one.loss_sum;
      sum.mtp_loss_sum += one.mtp_loss_sum;
      for (size_t i = 0; i < sum.gradients.size(); ++i) sum.gradients[i] += one.gradients[i];
      first += length;
    }
    // fp64 sums in another order.
    EXPECT_NEAR(whole.loss_sum, sum.loss_sum, 1e-12);
    EXPECT_NEAR(whole.mtp_loss_sum, sum.mtp_loss_sum, 1e-12);
    EXPECT_GT(whole.mtp_loss_sum, 1.0);
    double largest = 0.0;
    for (size_t i = 0; i < sum.gradients.size(); ++i) {
      ASSERT_NEAR(whole.gradients[i], sum.gradients[i], 1e-12) << i;
      largest = std::max(largest, std::abs(sum.gradients[i]));
    }
    EXPECT_GT(largest, 0.1);
    const Outcome mixed = model.run(packed.ids, packed.targets, 2, {}, all_weights);
    EXPECT_GT(std::abs(mixed.loss_sum - whole.loss_sum), 1e-3) << "documents change nothing here";
    EXPECT_GT(std::abs(mixed.mtp_loss_sum - whole.mtp_loss_sum), 1e-3);
  });
}

TEST(DocumentModel, IsTheSumOfItsDocuments) { expect_the_sum_of_documents(Packed(), /*weighted=*/false); }

TEST(DocumentModel, IsTheSumOfItsWeightedDocuments) { expect_the_sum_of_documents(Packed(), /*weighted=*/true); }

// A weight of 2 is the target twice, one of 0.5 half of it: the loss is linear in the weights.
TEST(DocumentModel, WeightsMultiplyLossesAndGradients) {
  test::on_one_rank([&](Communicator alone) {
    ModelRun model(alone);
    const Packed packed;
    const Outcome weighted = model.run(packed.ids, packed.targets, 2, packed.documents, packed.weights);
    Outcome sum;
    sum.gradients.assign(weighted.gradients.size(), 0.0);
    for (const float weight : {0.5F, 1.0F, 2.0F}) {
      std::vector<int32_t> targets = packed.targets;
      for (size_t t = 0; t < targets.size(); ++t) {
        if (packed.weights[t] != weight) targets[t] = -1;
      }
      const Outcome part = model.run(packed.ids, targets, 2, packed.documents, {});
      sum.loss_sum += weight * part.loss_sum;
      sum.mtp_loss_sum += weight * part.mtp_loss_sum;
      for (size_t i = 0; i < sum.gradients.size(); ++i) sum.gradients[i] += weight * part.gradients[i];
    }
    EXPECT_NEAR(weighted.loss_sum, sum.loss_sum, 1e-12);
    EXPECT_NEAR(weighted.mtp_loss_sum, sum.mtp_loss_sum, 1e-12);
    for (size_t i = 0; i < sum.gradients.size(); ++i) ASSERT_NEAR(weighted.gradients[i], sum.gradients[i], 1e-12) << i;
  });
}

}  // namespace
}  // namespace cadre::documents_test
