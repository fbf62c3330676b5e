// A task is one request and a run of columns: all of its tokens, whose codes are kept for a group of tokens at a time.
#include "ops/context_codes.h"

#include <algorithm>

#include "backends/cpu/convert.h"
#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"

namespace onerec::cpu {
namespace {

constexpr std::int64_t kRun = 64;

// Codes of `count` columns of row r, from column `begin` on.
void code_row(const ConstMatrix& m, std::int64_t r, std::int64_t begin, std::int64_t count, float inverse,
              std::uint8_t* codes) {
  const ConstMatrix run = m.columns(begin, count);
  if (run.dtype == DType::kF32) return f32_to_e4m3(run.row<float>(r), inverse, codes, count);
  float values[kRun];
  bf16_to_f32(run.row<BFloat16>(r), values, count);
  f32_to_e4m3(values, inverse, codes, count);
}

void code_keys(const QuantizeContextParams& p, std::int64_t first, std::int64_t tokens, std::int64_t begin,
               std::int64_t count) {
  const float inverse = 1.0f / p.codes.key_scale;
  for (std::int64_t n = first; n < first + tokens; ++n) {
    code_row(p.k, n, begin, count, inverse, p.codes.keys.row<std::uint8_t>(n) + begin);
  }
}

void code_values(const QuantizeContextParams& p, std::int64_t first, std::int64_t tokens, std::int64_t column,
                 std::int64_t begin, std::int64_t count) {
  const float inverse = 1.0f / p.codes.value_scale;
  std::uint8_t codes[kTokenGroup][kRun];
  for (std::int64_t n = 0; n < tokens; n += kTokenGroup) {
    const std::int64_t live = std::min(kTokenGroup, tokens - n);
    for (std::int64_t r = 0; r < live; ++r) code_row(p.v, first + n + r, begin, count, inverse, codes[r]);
    for (std::int64_t r = live; r < kTokenGroup; ++r) std::fill_n(codes[r], count, std::uint8_t{0});
    for (std::int64_t c = 0; c < count; ++c) {
      std::uint8_t* to = p.codes.values.row<std::uint8_t>(begin + c) + column + n;
      for (std::int64_t r = 0; r < kTokenGroup; ++r) to[token_place(r)] = codes[r][c];
    }
  }
}

}  // namespace

void CpuBackend::quantize_context(Stream& stream, const QuantizeContextParams& params) {
  submit(stream, [p = params] {
    const std::int64_t width = p.k.cols;
    const std::int64_t runs = (width + kRun - 1) / kRun;
    const int threads = threads_for(p.context_offsets[p.batch] * width, kElementsPerThread);
    for_tasks(threads, p.batch * runs, [&](int, std::int64_t task) {
      const std::int64_t b = task / runs;
      const std::int64_t begin = task % runs * kRun;
      const std::int64_t count = std::min(kRun, width - begin);
      const std::int64_t first = p.context_offsets[b];
      const std::int64_t tokens = p.context_offsets[b + 1] - first;
      code_keys(p, first, tokens, begin, count);
      code_values(p, first, tokens, value_begin(first, b), begin, count);
    });
  });
}

}  // namespace onerec::cpu
