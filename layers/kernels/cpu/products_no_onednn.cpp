// SPDX-License-Identifier: Apache-2.0
// Stands in for cpu_products_onednn.cpp in a build without oneDNN.
#include "layers/kernels/cpu/products.hpp"

namespace cadre {

std::unique_ptr<WeightProducts> make_onednn_products(Poller*) { return nullptr; }

}  // namespace cadre
