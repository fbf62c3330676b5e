// y = x W^T: the matrix product with its epilogue.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ops/context.h"
#include "ops/operand.h"

namespace onerec {

enum class WeightFormat : std::uint8_t {
  kDense,       // FP32 or BF16 values
  kFp8Channel,  // E4M3 codes, one FP32 scale per output
  kFp8Block,    // E4M3 codes, one FP32 scale per 128 outputs x 128 inputs
};

// A weight in host memory, ready to be packed: values [experts, N, K] contiguous; scales [experts, N] for
// kFp8Channel, [experts, ceil(N / 128), ceil(K / 128)] for kFp8Block.
struct LinearWeightSource {
  std::string name;
  std::int64_t experts = 1;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  WeightFormat format = WeightFormat::kDense;
  DType dtype = DType::kF32;  // kF32 or kBF16 for kDense, kE4M3 otherwise
  const void* values = nullptr;
  const float* scales = nullptr;
};

// A weight as the backend keeps it: packed, padded, on the device. Made once at load by Backend::pack_linear.
class LinearWeight {
 public:
  virtual ~LinearWeight() = default;
  // Takes over what the source says of itself; for backends that pack it.
  void describe(const LinearWeightSource& source);

  std::string name;          // such as "model.layers.0.self_attn.qkv_proj"
  std::int64_t experts = 1;  // > 1: a stack of weights of the same shape, for grouped_linear
  std::int64_t outputs = 0;  // N
  std::int64_t inputs = 0;   // K
  WeightFormat format = WeightFormat::kDense;
  DType dtype = DType::kF32;  // of the values; kE4M3 for codes
  std::size_t bytes = 0;      // device memory held
  // Of gates above ups: Operand::static_scale of silu(gate) * up, whatever is multiplied; 0: not known.
  float static_scale = 0.0f;
};

// The first step of every pack_linear(): throws ArgumentError for `reason`, why the backend cannot take the source
// (empty: it can), and for a source without its arrays.
void check_packable(const LinearWeightSource& source, const std::string& reason);

enum class Activation : std::uint8_t { kNone, kLeakyRelu };

// y[m, n] = round(activation(sum_k x[m, k] w[n, k] + bias[n]) + residual[m, n]) for the live rows m; rows behind the
// live ones, up to the capacity, are unspecified. With FP8: sum = sA[m] * (sW[n] * sum_k codes). See docs/numerics.md.
// `y` may be `residual` itself; `x` aliases neither.
struct LinearParams {
  Operand x = {};  // [rows, K]; kNone for kDense, kPerRow for kFp8Channel
  const LinearWeight* weight = nullptr;
  const float* bias = nullptr;  // [N] or null
  ConstMatrix residual = {};    // [rows, N] of y's dtype, or data = null
  Matrix y = {};                // [rows, N], FP32 or BF16
  Activation activation = Activation::kNone;
  float negative_slope = 0.01f;  // of kLeakyRelu
  std::int64_t unread = 0;       // columns of y, the first ones, that nobody reads: they may be left as they are
  Extent rows = {};
};

void linear(OpContext& context, const LinearParams& params);

}  // namespace onerec
