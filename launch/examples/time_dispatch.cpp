// SPDX-License-Identifier: Apache-2.0
// Time of a dispatch and a combine of 4,096 rows of 2,048 floats on each rank, 16 experts, 2 for each token: the median of 15.
// time_dispatch.py makes the same calls from Python.
//
//   mpirun -n 2 ./time_dispatch [STRATEGY]
#include <cadre/moe.hpp>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

using namespace cadre::moe;

static void print_median(const char* strategy) {
  constexpr int kTokens = 4096, kWidth = 2048, kExperts = 16, kTopK = 2, kTimes = 15;
  Dispatcher dispatcher =
      make_dispatcher(MPI_COMM_WORLD, {.num_experts = kExperts, .top_k = kTopK, .width = kWidth, .strategy = strategy});
  std::vector<float> x(kTokens * kWidth, 1.0F), y(x.size()), weights(kTokens * kTopK, 0.5F);
  std::vector<int32_t> ids(weights.size());
  for (int t = 0; t < kTokens; ++t) {
    ids[t * kTopK] = (7 * t) % kExperts;
    ids[t * kTopK + 1] = (7 * t + 5) % kExperts;
  }
  std::vector<double> times;
  for (int i = 0; i < kTimes; ++i) {
    const double begin = MPI_Wtime();
    Batch batch = dispatch(dispatcher, {x, kWidth}, ids, weights);
    combine(batch, batch.rows(), {y, kWidth});
    times.push_back((MPI_Wtime() - begin) * 1e3);
  }
  std::sort(times.begin(), times.end());
  if (dispatcher.rank() == 0) std::printf("%.2f ms, %s\n", times[kTimes / 2], dispatcher.strategy().c_str());
}

int main(int argc, char** argv) {
  if (MPI_Init(&argc, &argv) != MPI_SUCCESS) return 1;
  try {
    print_median(argc > 1 ? argv[1] : "flat");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "time_dispatch: %s\n", error.what());
    MPI_Abort(MPI_COMM_WORLD, 1);
  }
  return MPI_Finalize() == MPI_SUCCESS ? 0 : 1;
}
