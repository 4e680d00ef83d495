// SPDX-License-Identifier: Apache-2.0
// What moving bytes costs on this machine, as latency and time per byte (the alpha-beta model of Hockney 1994), measured
// in some milliseconds with all ranks at it at once, as in an exchange.
#pragma once

#include "comm/group/communicator.hpp"
#include "comm/group/topology.hpp"

namespace cadre {

struct LinkCost {
  double alpha_s = 0.0;  // of one message
  double beta_s = 0.0;   // of one byte

  double time(double messages, double bytes) const { return messages * alpha_s + bytes * beta_s; }
};

struct CostModel {
  LinkCost host;        // messages between ranks of a host
  LinkCost network;     // between hosts; zero where there is one
  double copy_s = 0.0;  // of one byte copied in memory
};

// Collective; `topology` is of the group's ranks. The slowest rank counts, so all ranks get the same numbers.
CostModel measure_costs(const Communicator& group, const Topology& topology);

}  // namespace cadre
