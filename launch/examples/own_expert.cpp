// SPDX-License-Identifier: Apache-2.0
// A mixture layer with an expert function of one's own, forward and backward: expert e is y = tanh(a_e x), with one number
// a_e of each expert. Every rank holds some experts and 64 tokens; it prints how far the results are from those that it
// computes alone.
//
//   mpirun -n 4 ./own_expert
#include <cadre/moe.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>

using namespace cadre::moe;

static constexpr int kExperts = 8, kTopK = 2, kTokens = 64, kWidth = 32;
static float a_of(int expert) { return 0.25F * static_cast<float>(expert + 1); }

static float largest_error(MPI_Comm comm) {
  Dispatcher dispatcher = make_dispatcher(comm, {.num_experts = kExperts, .top_k = kTopK, .width = kWidth});
  std::vector<float> x(kTokens * kWidth), y(x.size()), dx(x.size()), weights(kTokens * kTopK), dw(weights.size());
  std::vector<int32_t> ids(weights.size());  // a router would choose them
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i + 100U * dispatcher.rank()));
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 5 + i / 16) % kExperts);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = i % kTopK == 0 ? 0.75F : 0.25F;

  Batch batch = dispatch(dispatcher, {x, kWidth}, ids, weights);
  const Rows rows = batch.rows();  // those of expert e at places offsets[e] .. offsets[e + 1]
  std::vector<float> results(static_cast<size_t>(rows.count * kWidth)), d_results(results.size());
  const auto each_channel = [&](auto work) {
    for (size_t e = 0; e < dispatcher.experts().size(); ++e) {
      for (int64_t i = batch.expert_offsets()[e] * kWidth; i < batch.expert_offsets()[e + 1] * kWidth; ++i) {
        work(a_of(dispatcher.experts()[e]), i);
      }
    }
  };
  each_channel([&](float a, int64_t i) { results[i] = std::tanh(a * rows.data[i]); });
  combine(batch, {results, kWidth}, {y, kWidth});
  // Backward, of the loss sum(y): dy = 1.
  const std::vector<float> dy(x.size(), 1.0F);
  combine_backward(batch, {dy, kWidth}, {results, kWidth}, {d_results, kWidth}, dw);
  each_channel([&](float a, int64_t i) { d_results[i] *= a * (1.0F - results[i] * results[i]); });
  dispatch_backward(batch, {d_results, kWidth}, {dx, kWidth});

  float error = 0.0F;
  for (int i = 0; i < kTokens * kWidth; ++i) {
    float y_alone = 0.0F, dx_alone = 0.0F;
    for (int slot = i / kWidth * kTopK; slot < (i / kWidth + 1) * kTopK; ++slot) {
      const float tanh = std::tanh(a_of(ids[slot]) * x[i]);
      y_alone += weights[slot] * tanh;
      dx_alone += weights[slot] * a_of(ids[slot]) * (1.0F - tanh * tanh);
    }
    error = std::max({error, std::fabs(y[i] - y_alone), std::fabs(dx[i] - dx_alone)});
  }
  return error;
}

int main(int argc, char** argv) {
  if (MPI_Init(&argc, &argv) != MPI_SUCCESS) return 1;
  try {
    const float error = largest_error(MPI_COMM_WORLD);
    std::printf("largest error %.1e\n", static_cast<double>(error));
    if (!(error < 1e-6F)) MPI_Abort(MPI_COMM_WORLD, 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "own_expert: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return MPI_Finalize() == MPI_SUCCESS ? 0 : 1;
}
