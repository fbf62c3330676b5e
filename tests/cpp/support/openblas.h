// What tests that are linked with OpenBLAS in place of oneDNN (ONEREC_TEST_OPENBLAS) may expect of it.
#pragma once

namespace onerec::test {

// Whether its kernel for this processor gives a row the same bits wherever it is in a batch: those for AVX-512 and for
// AVX do, that for AVX2 does not, and of others we do not know (backends/cpu/gemm_openblas.cpp). True without OpenBLAS.
static inline bool library_keeps_rows() {
#if !defined(ONEREC_TEST_OPENBLAS)
  return true;
#elif defined(__x86_64__)
  const bool avx_alone = __builtin_cpu_supports("avx") != 0 && __builtin_cpu_supports("avx2") == 0;
  return __builtin_cpu_supports("avx512f") != 0 || avx_alone;
#else
  return false;
#endif
}

}  // namespace onerec::test
