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

// `config` with the choice in place of "auto": that of the checkpoint which the run goes on from, else agree_on_products. With
// device = cuda as it is. Collective over `world`. `note` on rank 0: where the CPUs of the ranks differ.
RunConfig with_products(const Communicator& world, RunConfig config, std::string& note);

}  // namespace cadre
