// SPDX-License-Identifier: Apache-2.0
// cadre bench: what parts of a step cost on this machine, each beside its floor.
#include "launch/bench/bench.hpp"

#include "comm/base/check.hpp"

namespace cadre {

void check_top_k(int64_t top_k, int64_t experts) {
  CADRE_CHECK(top_k <= experts, fmt::format("--top-k {} with --experts {}, allowed: 1 to {}", top_k, experts, experts),
              "lower --top-k or raise --experts");
}

Field device_option(std::string& device) {
  return {"device", &device, one_of({"cpu", "cuda"}), "device that computes"};
}

Command bench_command() {
  return {.name = "bench",
          .summary = "measures parts of a step and the limit of each",
          .parts = {bench_gemm_command(), bench_exchange_command(), bench_layer_command(), bench_overlap_command(),
                    bench_permute_command(), bench_router_command(), bench_generate_command()}};
}

}  // namespace cadre
