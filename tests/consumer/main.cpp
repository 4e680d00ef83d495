// SPDX-License-Identifier: Apache-2.0
// Uses an installed Cadre from outside: headers and symbols of its libraries. Returns 0 when the answers are right.
#include <cstdint>
#include <cstdio>

#include "comm/base/random.hpp"
#include "layers/tensor/tensor.hpp"
#include "runtime/config/run_file.hpp"

int main() {
  const cadre::Random random(1, "consumer", cadre::hash_name("a name"));
  const std::uint64_t draw = random.below(6, 0);
  const cadre::Tensor tensor(nullptr, cadre::DType::f32, {2, 3});
  const cadre::RunConfig run = cadre::parse_run_config("seed = 7", "consumer", {"steps=3"});
  std::printf("drew %llu, tensor %s\n", static_cast<unsigned long long>(draw), tensor.describe().c_str());
  return draw < 6 && tensor.numel() == 6 && run.seed == 7 && run.train.steps == 3 ? 0 : 1;
}
