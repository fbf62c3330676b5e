// The router of a mixture of experts: its product, then the choice of experts.
#pragma once

#include "ops/linear.h"
#include "ops/moe.h"

namespace onerec {

// linear (ops/linear.h), then route (ops/moe.h) of its y: route.logits is product.y, with the same rows. A backend may
// do both at once; what y holds afterwards is then unspecified.
struct LinearRouteParams {
  LinearParams product;
  RouteParams route;
};

void linear_route(OpContext& context, const LinearRouteParams& params);

}  // namespace onerec
