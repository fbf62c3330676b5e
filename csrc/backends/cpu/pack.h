// A linear's weight as this backend keeps it.
#pragma once

#include <memory>
#include <vector>

#include "backends/cpu/gemm.h"
#include "ops/linear.h"

namespace onerec::cpu {

// Holds the packed copy only. kFp8Channel keeps the codes as values and the scales beside them; kFp8Block keeps the
// FP32 products of both, because a scale that changes along the sum cannot be applied after it.
class CpuLinearWeight final : public LinearWeight {
 public:
  std::unique_ptr<PackedMatrix> matrix;
  std::vector<float> scales;  // [experts, N] of kFp8Channel, else empty
};

}  // namespace onerec::cpu
