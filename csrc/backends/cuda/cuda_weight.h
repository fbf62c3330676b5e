// A linear's weight in device memory, as the source has it: row-major codes or values, FP32 scales.
#pragma once

#include "ops/device.h"
#include "ops/linear.h"

namespace onerec::cuda {

class CudaWeight final : public LinearWeight {
 public:
  const void* values() const { return values_buffer->data(); }  // [experts, outputs, inputs]
  // [experts, outputs] (kFp8Channel), [experts, ceil(outputs / 128), ceil(inputs / 128)] (kFp8Block), null (kDense).
  const float* scales() const {
    return scales_buffer == nullptr ? nullptr : static_cast<const float*>(scales_buffer->data());
  }

  std::unique_ptr<Buffer> values_buffer;
  std::unique_ptr<Buffer> scales_buffer;
};

inline const CudaWeight& weight_of(const LinearWeight* weight) { return static_cast<const CudaWeight&>(*weight); }

}  // namespace onerec::cuda
