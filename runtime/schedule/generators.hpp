// SPDX-License-Identifier: Apache-2.0
// The generators: pure functions to programs without messages (add_messages puts those in), valid where make_program
// calls them. The micro-batches of a program are numbered over all routes.
#pragma once

#include "runtime/schedule/program.hpp"

namespace cadre {

// Rank r holds stage r. One forward, one backward in turn, after r's share of warm-up (PipeDream-flush).
Program one_f_one_b(int num_ranks, int num_micro_batches);

// The same with the backward split, so that weight gradients fill what was bubble; the memory of 1F1B (ZeroBubble H1).
Program zb1p(int num_ranks, int num_micro_batches);

// Rank r holds stages r and R-1-r of a model of R stages; half of the micro-batches enter at each end.
// R even; M even and at least 2R.
Program dualpipe(int num_ranks, int num_micro_batches);

// Rank r holds stages r and 2R-1-r of a model of 2R stages: down the ranks and back up. M at least 2R.
Program dualpipev(int num_ranks, int num_micro_batches);

// One rank, one stage: each forward beside a backward, for the sake of the exchanges between experts alone. The first `ramp`
// forwards run side by side, and so do the last backwards, which spreads the sums of gradients over several passes.
Program pair(int num_micro_batches, int ramp);

// Sends stand right behind the op that made the rows. Each receive stands as late as it can without ever holding up the
// sender at unit costs, so that a receive buffer is taken about one op before its rows come, and sends that wait for
// their receiver cost no time and cannot close a circle.
Program add_messages(Program program);

}  // namespace cadre
