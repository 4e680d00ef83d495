// SPDX-License-Identifier: Apache-2.0
// Which library multiplies in a job on CPUs: measured once for a machine, the same on all ranks, and kept with a run, so that a
// resume and the same command again give the same bits.
#pragma once

#include <filesystem>
#include <string>

#include "comm/group/communicator.hpp"
#include "layers/kernels/product_choice.hpp"
#include "runtime/config/run_config.hpp"

namespace cadre {

// cadre/ in $XDG_CACHE_HOME or ~/.cache; empty where neither is set.
std::filesystem::path product_cache();

// What `cache` has for this machine; else measured, and written there where that can be. Of processes that measure at the same
// time the first to write prevails. `anew` measures in any case, and overwrites.
ProductChoice choose_products(const std::filesystem::path& cache, bool anew = false);

// compute.products; for "auto" the choice of rank 0. Collective over `world`.
ProductChoice agree_on_products(const Communicator& world, const std::string& products);

// The name of a choice on all ranks: `products` of rank 0, measured there where it is "auto". Collective over `world`.
std::string products_of_rank_0(const Communicator& world, const std::string& products);

// Empty, or a line on a rank whose CPU or libraries differ from those of rank 0, which chose `products`. Collective over `world`.
std::string note_on_machines(const Communicator& world, const std::string& products);

}  // namespace cadre
