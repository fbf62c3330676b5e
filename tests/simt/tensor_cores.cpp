// In place of the kernels for tensor cores: the emulation has none, and says so in DeviceLimits.
#include "backends/cuda/attention/flash_cross_attention.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

[[noreturn]] void refuse(const char* op) {
  throw InternalError(concat("[", op, "] got a call of a kernel for tensor cores, want a plain one under emulation."));
}

}  // namespace

void dense_gemm(Stream&, const LinearParams&, int, int) { refuse("linear"); }

void norm_gemm(Stream&, const LinearNormParams&, int, int) { refuse("linear_norm"); }

void swiglu_gemm(Stream&, const LinearSwigluParams&, const Matrix&, int, int) { refuse("linear_swiglu"); }

void swiglu_static_codes_gemm(Stream&, const LinearSwigluParams&, int, int) { refuse("linear_swiglu"); }
void swiglu_codes_gemm(Stream&, const LinearSwigluParams&, int, int, Workspace) { refuse("linear_swiglu"); }

void grouped_gemm(Stream&, const GroupedLinearParams&, int, int) { refuse("grouped_linear"); }

void network_gemm(Stream&, const RoutedFeedForwardParams&, int, int, std::uint32_t*) { refuse("routed_feed_forward"); }

void grouped_swiglu_gemm(Stream&, const GroupedSwigluParams&, int, int) { refuse("grouped_swiglu"); }

void flash_cross_attention(Stream&, const CrossAttentionParams&, const FlashPlan&) { refuse("cross_attention"); }

}  // namespace onerec::cuda
