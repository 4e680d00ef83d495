// SPDX-License-Identifier: Apache-2.0
// Uses an installed Cadre from outside: a header and a symbol of each library. Returns 0 when the numbers are right.
#include <cstdio>

#include "comm/base/dtype.hpp"
#include "comm/base/random.hpp"
#include "layers/tensor/tensor.hpp"

int main() {
  const cadre::Random random(1, "consumer", 7);
  const double draw = random.uniform(0);
  std::printf("a number from Cadre: %.6f\n", draw);
  return draw >= 0.0 && draw < 1.0 ? 0 : 1;
}
