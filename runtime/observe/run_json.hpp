// SPDX-License-Identifier: Apache-2.0
// What a run was, as traces and reports write it.
#pragma once

#include <nlohmann/json.hpp>

#include "runtime/observe/rank_trace.hpp"

namespace cadre {

inline nlohmann::json run_json(const TracedRun& run) {
  return {{"cadre_version", run.cadre_version},
          {"mpi", run.mpi},
          {"ranks", run.num_ranks},
          {"hosts", run.num_hosts},
          {"pipeline", run.pipeline},
          {"data", run.data},
          {"expert", run.expert},
          {"schedule", run.schedule},
          {"micro_batches", run.num_micro_batches},
          {"exchange", run.exchange},
          {"threads", run.threads},
          {"seed", run.seed},
          {"config_hash", run.config_hash}};
}

}  // namespace cadre
