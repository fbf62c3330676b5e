// Several prepared linears, one behind the other.
#pragma once

#include <span>

#include "ops/prepared_linear.h"

namespace onerec {

// prepared_linear() of each link in order, to the same bits: a link may read what those before it write. A backend may
// do several of them in one kernel.
void prepared_chain(OpContext& context, std::span<const PreparedLinearParams> links);

}  // namespace onerec
