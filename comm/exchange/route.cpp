// SPDX-License-Identifier: Apache-2.0
#include "comm/exchange/route.hpp"

namespace cadre {

Side planned_side(const DispatchPlan& plan, Unit unit) {
  return unit == Unit::row ? Side{plan.row_counts, plan.row_offsets} : Side{plan.slot_counts, plan.slot_offsets};
}

Side received_side(const ReceiveCounts& receive, Unit unit) {
  return unit == Unit::row ? Side{receive.row_counts, receive.row_offsets}
                           : Side{receive.slot_counts, receive.slot_offsets};
}

Sides sides_of(const Route& route, Direction direction, Unit unit) {
  const Side planned = planned_side(route.plan, unit);
  const Side received = received_side(route.receive, unit);
  return direction == Direction::to_experts ? Sides{planned, received} : Sides{received, planned};
}

TokenOrder token_order(const DispatchPlan& plan, Unit unit) {
  return unit == Unit::row ? TokenOrder{plan.token_rows, plan.token_row}
                           : TokenOrder{plan.token_slots, plan.token_slot};
}

}  // namespace cadre
