// Results of matrix products as threads store them.
#pragma once

#include "backends/cuda/kernels/numeric.cuh"

namespace onerec::cuda::kernels {

// BF16 values of neighbouring columns, in pairs.
template <int kColumns>
struct ResultVector {
  std::uint32_t words[kColumns / 2];
};

template <int kColumns>
__device__ __forceinline__ ResultVector<kColumns> rounded(const float (&values)[kColumns]) {
  ResultVector<kColumns> v;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i) {
    v.words[i] = bits_as<std::uint32_t>(__floats2bfloat162_rn(values[2 * i], values[2 * i + 1]));
  }
  return v;
}

// At once: the compiler splits some of what store_vector() asks for. Nothing where `present` is not set, without a
// branch, across which the compiler would not move what makes the next results.
__device__ __forceinline__ void store_whole(__nv_bfloat16* to, const ResultVector<8>& v, bool present) {
  asm volatile(
      "{\n"
      ".reg .pred present;\n"
      "setp.ne.b32 present, %5, 0;\n"
      "@present st.global.v4.u32 [%0], {%1, %2, %3, %4};\n"
      "}" ::"l"(to),
      "r"(v.words[0]), "r"(v.words[1]), "r"(v.words[2]), "r"(v.words[3]), "r"(static_cast<int>(present))
      : "memory");
}
__device__ __forceinline__ void store_two_words(void* to, const std::uint32_t (&words)[2], bool present) {
  asm volatile(
      "{\n"
      ".reg .pred present;\n"
      "setp.ne.b32 present, %3, 0;\n"
      "@present st.global.v2.u32 [%0], {%1, %2};\n"
      "}" ::"l"(to),
      "r"(words[0]), "r"(words[1]), "r"(static_cast<int>(present))
      : "memory");
}
__device__ __forceinline__ void store_whole(__nv_bfloat16* to, const ResultVector<4>& v, bool present) {
  store_two_words(to, v.words, present);
}

// Codes of neighbouring columns, four to a word.
template <int kColumns>
struct CodeVector {
  std::uint32_t words[kColumns / 4];
};

// E4M3 of values in units of 1 / inverse, which is positive.
template <int kColumns>
__device__ __forceinline__ CodeVector<kColumns> codes_of(const float (&values)[kColumns], float inverse) {
  CodeVector<kColumns> v;
#pragma unroll
  for (int i = 0; i < kColumns; i += 4) {
    v.words[i / 4] = numbers_to_e4m3x4(values[i] * inverse, values[i + 1] * inverse, values[i + 2] * inverse,
                                       values[i + 3] * inverse);
  }
  return v;
}

__device__ __forceinline__ void store_whole(std::uint8_t* to, const CodeVector<8>& v, bool present) {
  store_two_words(to, v.words, present);
}

// Four codes.
__device__ __forceinline__ void store_whole(std::uint8_t* to, std::uint32_t codes, bool present) {
  asm volatile(
      "{\n"
      ".reg .pred present;\n"
      "setp.ne.b32 present, %2, 0;\n"
      "@present st.global.u32 [%0], %1;\n"
      "}" ::"l"(to),
      "r"(codes), "r"(static_cast<int>(present))
      : "memory");
}
__device__ __forceinline__ void store_whole(std::uint8_t* to, const CodeVector<4>& v, bool present) {
  store_whole(to, v.words[0], present);
}

}  // namespace onerec::cuda::kernels
