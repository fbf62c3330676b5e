#include "backends/cuda/kernels/quantize_context.cuh"

#include "backends/cuda/cuda_backend.h"
#include "backends/cuda/launch.h"
#include "backends/cuda/row_launch.h"
#include "ops/context_codes.h"

namespace onerec::cuda {
namespace {

template <class T>
void run(Stream& stream, const QuantizeContextParams& p) {
  const ContextCodes& codes = p.codes;
  const bool fours =
      p.k.cols % 4 == 0 && rows_aligned(p.k, 4) && rows_aligned(p.v, 4) && rows_aligned(codes.keys, 4);
  const kernels::QuantizeContextArguments<T> arguments{.k = static_cast<const T*>(p.k.data),
                                                       .k_stride = p.k.stride,
                                                       .v = static_cast<const T*>(p.v.data),
                                                       .v_stride = p.v.stride,
                                                       .context_offsets = p.context_offsets,
                                                       .requests = static_cast<int>(p.batch),
                                                       .keys = static_cast<std::uint8_t*>(codes.keys.data),
                                                       .keys_stride = codes.keys.stride,
                                                       .values = static_cast<std::uint8_t*>(codes.values.data),
                                                       .values_stride = codes.values.stride,
                                                       .width = p.k.cols,
                                                       .key_inverse = 1.0f / codes.key_scale,
                                                       .value_inverse = 1.0f / codes.value_scale,
                                                       .fours = fours ? 1 : 0};
  launch(stream, "quantize_context", kernels::quantize_context_kernel<T>,
         {.grid = dim3(static_cast<unsigned>(kernels::context_block(p.tokens_capacity, p.batch)),
                       blocks_for(p.k.cols, kernels::kContextColumns)),
          .block = dim3(kernels::kContextThreads)},
         arguments);
}

}  // namespace

void CudaBackend::quantize_context(Stream& stream, const QuantizeContextParams& params) {
  params.k.dtype == DType::kF32 ? run<float>(stream, params) : run<kernels::bf16>(stream, params);
}

}  // namespace onerec::cuda
