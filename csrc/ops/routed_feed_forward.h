// The networks of routed experts: rows brought into their experts' order, and the experts' two products.
#pragma once

#include "ops/grouped_linear.h"
#include "ops/grouped_swiglu.h"
#include "ops/moe.h"

namespace onerec {

// gather_rows into first.x, then grouped_swiglu into second.x, then grouped_linear: for sorted position i of expert e,
// second.y[i] = down_e (silu(gate_e x[sources[i]]) * (up_e x[sources[i]])). All three have the same offsets, capacity
// and alignment. A backend may do both products at once; what first.gate_up holds afterwards is unspecified.
struct RoutedFeedForwardParams {
  GatherRowsParams gather;  // kPerBlock
  GroupedSwigluParams first;
  GroupedLinearParams second;  // kFp8Block
};

void routed_feed_forward(OpContext& context, const RoutedFeedForwardParams& params);

}  // namespace onerec
