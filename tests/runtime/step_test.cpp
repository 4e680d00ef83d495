// SPDX-License-Identifier: Apache-2.0
// The norm of the gradients of a whole model, whichever ranks hold its parts.
#include "runtime/parallel/step.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/ranks.hpp"

namespace cadre::step_test {
namespace {

WorkerOptions small_worker() {
  WorkerOptions options;
  ModelConfig& model = options.model;
  model.vocab_size = 13;
  model.hidden_size = 8;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 2;
  model.max_position_embeddings = 8;
  model.intermediate_size = 10;
  model.n_routed_experts = 4;
  model.num_experts_per_tok = 2;
  model.n_shared_experts = 1;
  model.moe_intermediate_size = 6;
  model.first_k_dense_replace = 1;
  fill_defaults(model);
  options.with_grad = true;
  return options;
}

// With every element g the norm is sqrt(N) |g|. N, by hand: embedding and head 13 x 8 each; a layer 4 x 8 x 8 of attention and
// two norms of 8; dense 3 x 10 x 8; mixture (4 + 1) x 3 x 6 x 8 and a gate of 4 x 8; the last norm.
TEST(GradientNorm, is_the_root_of_the_squares_of_every_parameter_once) {
  constexpr double kElements = 2 * 13 * 8 + 2 * (4 * 8 * 8 + 2 * 8) + 3 * 10 * 8 + 5 * 3 * 6 * 8 + 4 * 8 + 8;
  test::on_ranks(
      [&](Communicator& world) {
        Worker worker(world.duplicate("test"), small_worker());
        for (const Parameter* parameter : worker.store().parameters()) {
          if (!parameter->grad.defined()) continue;
          for (int64_t i = 0; i < parameter->grad.numel(); ++i) parameter->grad.data<float>()[i] = -0.5F;
        }
        EXPECT_NEAR(gradient_norm(worker), 0.5 * std::sqrt(kElements), 1e-9) << world.size() << " ranks";
      },
      {1, 2});
}

}  // namespace
}  // namespace cadre::step_test
