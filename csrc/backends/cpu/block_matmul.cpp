#include "backends/cpu/block_matmul.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/bfloat16.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

namespace onerec::cpu {
namespace {

// The compiler would split vectors wider than the baseline's before function multiversioning sees them, and the best
// register block depends on the number of registers: so one copy per set of instructions, and a choice when the library
// is loaded.

#if defined(__x86_64__) && defined(__GNUC__)
__attribute__((target("avx"), always_inline)) inline float sum_of_eight(__m256 x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

__attribute__((target("avx"), always_inline)) inline float largest_of_eight(__m256 x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

namespace avx512 {

constexpr const char* kName = "avx512";

#define ONEREC_ISA __attribute__((target("arch=x86-64-v4")))
#define ONEREC_ISA_INLINE ONEREC_ISA inline __attribute__((always_inline))

using Vec = __m512;
constexpr std::int64_t kLanes = 16;
constexpr int kRows = 6;
constexpr int kVecs = 4;
// The unmasked forms of some instructions make compilers warn about their own headers.
constexpr __mmask16 kAll = 0xffff;

ONEREC_ISA_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
ONEREC_ISA_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
ONEREC_ISA_INLINE Vec broadcast(float x) { return _mm512_set1_ps(x); }
ONEREC_ISA_INLINE Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
ONEREC_ISA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
ONEREC_ISA_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
ONEREC_ISA_INLINE Vec maximum(Vec a, Vec b) { return _mm512_maskz_max_ps(kAll, a, b); }
ONEREC_ISA_INLINE __m256 low_half(Vec x) { return _mm512_maskz_extractf32x8_ps(0xff, x, 0); }
ONEREC_ISA_INLINE __m256 high_half(Vec x) { return _mm512_maskz_extractf32x8_ps(0xff, x, 1); }
ONEREC_ISA_INLINE float reduce_add(Vec x) { return sum_of_eight(_mm256_add_ps(low_half(x), high_half(x))); }
ONEREC_ISA_INLINE float reduce_maximum(Vec x) { return largest_of_eight(_mm256_max_ps(low_half(x), high_half(x))); }
ONEREC_ISA_INLINE Vec first_lanes(Vec x, std::int64_t n) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>((1u << n) - 1), broadcast(-INFINITY), x);
}
ONEREC_ISA_INLINE Vec nearest(Vec x) { return _mm512_maskz_roundscale_ps(kAll, x, _MM_FROUND_TO_NEAREST_INT); }
ONEREC_ISA_INLINE Vec power_of_two(Vec n) {
  const __m512i biased = _mm512_add_epi32(_mm512_maskz_cvtps_epi32(kAll, n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, biased, 23));
}
ONEREC_ISA_INLINE Vec rounded(Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-0x10000)));
}

// Transposes 4x4 blocks within 128-bit lanes, then the 4x4 arrangement of the lanes.
ONEREC_ISA_INLINE void transpose_block(const float* x, std::int64_t stride, float* out) {
  Vec row[16], pair[16], quad[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) row[i] = load(x + i * stride);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_maskz_unpacklo_ps(kAll, row[i], row[i + 1]);
    pair[i + 1] = _mm512_maskz_unpackhi_ps(kAll, row[i], row[i + 1]);
  }
  // quad[4 * g + j]: column 4 * lane + j of rows 4 * g ... 4 * g + 3.
#pragma GCC unroll 16
  for (int g = 0; g < 16; g += 4) {
    quad[g] = _mm512_maskz_shuffle_ps(kAll, pair[g], pair[g + 2], 0x44);
    quad[g + 1] = _mm512_maskz_shuffle_ps(kAll, pair[g], pair[g + 2], 0xee);
    quad[g + 2] = _mm512_maskz_shuffle_ps(kAll, pair[g + 1], pair[g + 3], 0x44);
    quad[g + 3] = _mm512_maskz_shuffle_ps(kAll, pair[g + 1], pair[g + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec low_even = _mm512_maskz_shuffle_f32x4(kAll, quad[j], quad[4 + j], 0x88);
    const Vec low_odd = _mm512_maskz_shuffle_f32x4(kAll, quad[j], quad[4 + j], 0xdd);
    const Vec high_even = _mm512_maskz_shuffle_f32x4(kAll, quad[8 + j], quad[12 + j], 0x88);
    const Vec high_odd = _mm512_maskz_shuffle_f32x4(kAll, quad[8 + j], quad[12 + j], 0xdd);
    store(out + j * kPanel, _mm512_maskz_shuffle_f32x4(kAll, low_even, high_even, 0x88));
    store(out + (4 + j) * kPanel, _mm512_maskz_shuffle_f32x4(kAll, low_odd, high_odd, 0x88));
    store(out + (8 + j) * kPanel, _mm512_maskz_shuffle_f32x4(kAll, low_even, high_even, 0xdd));
    store(out + (12 + j) * kPanel, _mm512_maskz_shuffle_f32x4(kAll, low_odd, high_odd, 0xdd));
  }
}

#include "backends/cpu/block_matmul_kernel.h"
#undef ONEREC_ISA
#undef ONEREC_ISA_INLINE

}  // namespace avx512

namespace avx2 {

constexpr const char* kName = "avx2";

#define ONEREC_ISA __attribute__((target("arch=x86-64-v3")))
#define ONEREC_ISA_INLINE ONEREC_ISA inline __attribute__((always_inline))

using Vec = __m256;
constexpr std::int64_t kLanes = 8;
constexpr int kRows = 6;
constexpr int kVecs = 2;

ONEREC_ISA_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
ONEREC_ISA_INLINE void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
ONEREC_ISA_INLINE Vec broadcast(float x) { return _mm256_set1_ps(x); }
ONEREC_ISA_INLINE Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
ONEREC_ISA_INLINE Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
ONEREC_ISA_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
ONEREC_ISA_INLINE Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
ONEREC_ISA_INLINE float reduce_add(Vec x) { return sum_of_eight(x); }
ONEREC_ISA_INLINE float reduce_maximum(Vec x) { return largest_of_eight(x); }
ONEREC_ISA_INLINE Vec first_lanes(Vec x, std::int64_t n) {
  const __m256 place = _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_blendv_ps(broadcast(-INFINITY), x, _mm256_cmp_ps(place, broadcast(static_cast<float>(n)), _CMP_LT_OQ));
}
ONEREC_ISA_INLINE Vec nearest(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
ONEREC_ISA_INLINE Vec power_of_two(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
ONEREC_ISA_INLINE Vec rounded(Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
  return _mm256_castsi256_ps(_mm256_and_si256(up, _mm256_set1_epi32(-0x10000)));
}

ONEREC_ISA_INLINE void transpose_block(const float* x, std::int64_t stride, float* out) {
  Vec row[8], pair[8], quad[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) row[i] = load(x + i * stride);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
    pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
  }
#pragma GCC unroll 8
  for (int g = 0; g < 8; g += 4) {
    quad[g] = _mm256_shuffle_ps(pair[g], pair[g + 2], 0x44);
    quad[g + 1] = _mm256_shuffle_ps(pair[g], pair[g + 2], 0xee);
    quad[g + 2] = _mm256_shuffle_ps(pair[g + 1], pair[g + 3], 0x44);
    quad[g + 3] = _mm256_shuffle_ps(pair[g + 1], pair[g + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    store(out + j * kPanel, _mm256_permute2f128_ps(quad[j], quad[4 + j], 0x20));
    store(out + (4 + j) * kPanel, _mm256_permute2f128_ps(quad[j], quad[4 + j], 0x31));
  }
}

#include "backends/cpu/block_matmul_kernel.h"
#undef ONEREC_ISA
#undef ONEREC_ISA_INLINE

}  // namespace avx2
#endif

namespace baseline {

constexpr const char* kName = "baseline";

#define ONEREC_ISA
#define ONEREC_ISA_INLINE inline

struct Vec {
  float lane[4];
};
constexpr std::int64_t kLanes = 4;
constexpr int kRows = 4;
constexpr int kVecs = 2;

inline Vec load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
inline void store(float* p, Vec x) {
  for (int i = 0; i < 4; ++i) p[i] = x.lane[i];
}
inline Vec broadcast(float x) { return {{x, x, x, x}}; }
inline Vec multiply(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) a.lane[i] *= b.lane[i];
  return a;
}
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  for (int i = 0; i < 4; ++i) c.lane[i] += a.lane[i] * b.lane[i];
  return c;
}
inline Vec add(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) a.lane[i] += b.lane[i];
  return a;
}
inline Vec maximum(Vec a, Vec b) {
  for (int i = 0; i < 4; ++i) a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
  return a;
}
inline float reduce_add(Vec x) { return (x.lane[0] + x.lane[2]) + (x.lane[1] + x.lane[3]); }
inline float reduce_maximum(Vec x) { return std::max(std::max(x.lane[0], x.lane[1]), std::max(x.lane[2], x.lane[3])); }
inline Vec first_lanes(Vec x, std::int64_t n) {
  for (std::int64_t i = n; i < 4; ++i) x.lane[i] = -INFINITY;
  return x;
}
// Adding 1.5 * 2^23 leaves no bits for a fraction.
inline Vec nearest(Vec x) { return add(add(x, broadcast(12582912.0f)), broadcast(-12582912.0f)); }
inline Vec power_of_two(Vec n) {
  for (int i = 0; i < 4; ++i) {
    const auto exponent = static_cast<std::uint32_t>(std::isnan(n.lane[i]) ? 0 : static_cast<std::int32_t>(n.lane[i]));
    n.lane[i] = std::bit_cast<float>((exponent + 127u) << 23);
  }
  return n;
}
inline Vec rounded(Vec x) {
  for (int i = 0; i < 4; ++i) x.lane[i] = to_float(to_bfloat16(x.lane[i]));
  return x;
}
inline void transpose_block(const float* x, std::int64_t stride, float* out) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) out[j * kPanel + i] = x[i * stride + j];
  }
}

#include "backends/cpu/block_matmul_kernel.h"
#undef ONEREC_ISA
#undef ONEREC_ISA_INLINE

}  // namespace baseline

}  // namespace

std::vector<const BlockKernels*> usable_block_kernels() {
  std::vector<const BlockKernels*> usable;
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) usable.push_back(&avx512::kKernels);
  if (v3) usable.push_back(&avx2::kKernels);
#endif
  usable.push_back(&baseline::kKernels);
  return usable;
}

const BlockKernels& block_kernels() {
  static const BlockKernels& best = *usable_block_kernels().front();
  return best;
}

}  // namespace onerec::cpu
