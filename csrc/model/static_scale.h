// Scales of codes that are known from the weights alone, before any activation is: no value that the weights allow is
// beyond 448 of them. E4M3 is a floating format, so that a scale may be far above what a row would ask for, as long as
// typical values do not become subnormal. The rules are in docs/numerics.md.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/linear.h"

namespace onerec {

// For what the cross-attention makes of values that an RMSNorm with `gamma` has made, or 0.
float attention_static_scale(const std::vector<float>& gamma);

// For silu(gate) * up of the product `gate_up`, gates above ups, with codes of rows that an RMSNorm with `gamma` has
// made; or 0. kFp8Channel, one expert.
float swiglu_static_scale(const LinearWeightSource& gate_up, const std::vector<float>& gamma);

}  // namespace onerec
