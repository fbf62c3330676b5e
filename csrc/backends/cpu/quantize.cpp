#include "ops/quantize.h"

#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/quantize_row.h"

namespace onerec::cpu {
namespace {

void quantize_rows(const QuantizeParams& p, std::int64_t begin, std::int64_t end) {
  for (std::int64_t r = begin; r < end; ++r) {
    quantize_row(p.quantized, r, [&](std::int64_t first, std::int64_t count, float* out) {
      if (p.x.dtype == DType::kBF16) {
        bf16_to_f32(p.x.row<BFloat16>(r) + first, out, count);
      } else {
        std::memcpy(out, p.x.row<float>(r) + first, static_cast<std::size_t>(count) * sizeof(float));
      }
    });
  }
}

}  // namespace

void CpuBackend::quantize(Stream& stream, const QuantizeParams& params) {
  submit(stream, [params] {
    for_rows(live(params.rows), params.x.cols,
             [&](std::int64_t begin, std::int64_t end) { quantize_rows(params, begin, end); });
  });
}

}  // namespace onerec::cpu
