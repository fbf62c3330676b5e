// CUDA's device language for the host compiler: included before the first line of every .cu file and of whatever kernel
// headers it takes. Only what the kernels of csrc/backends/cuda use.
#pragma once

#include <cuda_runtime.h>

// A shared array belongs to the block that runs; see shared_memory.h.
#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __cluster_dims__
#define __cluster_dims__(...)

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "executor.h"

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

inline void* simt_dynamic_shared() { return onerec::simt::dynamic_shared_memory(); }
inline void simt_wait_for_previous_kernel() { onerec::simt::note_wait_for_previous_kernel(); }

// --- barriers, shuffles and votes; `where` is the line of the call, for messages ---

using SimtWhere = onerec::simt::Where;

inline void __syncthreads(SimtWhere where = SimtWhere::current()) { onerec::simt::sync_block(where); }

inline void __syncwarp(unsigned mask = 0xffffffffu, SimtWhere where = SimtWhere::current()) {
  onerec::simt::sync_warp(onerec::simt::Collective::kSync, mask, 0, 0, where);
}

template <class T>
std::uint64_t simt_operand(T value) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t) && std::is_trivially_copyable_v<T>);
  std::uint64_t operand = 0;
  std::memcpy(&operand, &value, sizeof(value));
  return operand;
}

template <class T>
T simt_shuffle(unsigned mask, T value, unsigned source, SimtWhere where) {
  const std::uint64_t result =
      onerec::simt::sync_warp(onerec::simt::Collective::kShuffle, mask, simt_operand(value), source, where);
  std::memcpy(&value, &result, sizeof(value));
  return value;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SimtWhere where = SimtWhere::current()) {
  const unsigned segment = onerec::simt::current_lane() & ~static_cast<unsigned>(width - 1);
  return simt_shuffle(mask, value, segment + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)), where);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SimtWhere where = SimtWhere::current()) {
  const unsigned lane = onerec::simt::current_lane();
  const bool inside = delta <= (lane & static_cast<unsigned>(width - 1));
  return simt_shuffle(mask, value, inside ? lane - delta : lane, where);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SimtWhere where = SimtWhere::current()) {
  const unsigned lane = onerec::simt::current_lane();
  const bool inside = (lane & static_cast<unsigned>(width - 1)) + delta < static_cast<unsigned>(width);
  return simt_shuffle(mask, value, inside ? lane + delta : lane, where);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SimtWhere where = SimtWhere::current()) {
  const unsigned lane = onerec::simt::current_lane();
  const unsigned source = lane ^ static_cast<unsigned>(lanes);
  const bool inside = source <= (lane | static_cast<unsigned>(width - 1));
  return simt_shuffle(mask, value, inside ? source : lane, where);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return static_cast<unsigned>(
      onerec::simt::sync_warp(onerec::simt::Collective::kBallot, mask, predicate != 0, 0, where));
}

inline int __any_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}

inline int __all_sync(unsigned mask, int predicate, SimtWhere where = SimtWhere::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, SimtWhere where = SimtWhere::current()) {
  return static_cast<unsigned>(
      onerec::simt::sync_warp(onerec::simt::Collective::kMatch, mask, simt_operand(value), 0, where));
}

// --- memory; only one thread runs at a time ---

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  const T before = *address;
  *address = value;
  return before;
}

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "a sum of floats would depend on the order");
  return atomicExch(address, static_cast<T>(static_cast<std::make_unsigned_t<T>>(*address) +
                                            static_cast<std::make_unsigned_t<T>>(value)));
}

template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, *address < value ? value : *address);
}

template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, value < *address ? value : *address);
}

template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, static_cast<T>(*address | value));
}

template <class T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return atomicExch(address, static_cast<T>(*address & value));
}

template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return atomicExch(address, *address == expected ? value : *address);
}

// --- arithmetic ---

using std::isfinite;
using std::isinf;
using std::isnan;

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(b) < static_cast<Both>(a) ? static_cast<Both>(b) : static_cast<Both>(a);
}

template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using Both = std::common_type_t<A, B>;
  return static_cast<Both>(a) < static_cast<Both>(b) ? static_cast<Both>(b) : static_cast<Both>(a);
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
// Saturates; NaN gives 2^63, as on a GPU.
inline unsigned long long __float2ull_rn(float value) {
  if (std::isnan(value)) return 0x8000000000000000ull;
  if (value <= 0.0f) return 0;
  return value >= 18446744073709551616.0f ? ~0ull : static_cast<unsigned long long>(std::nearbyintf(value));
}
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float value) { return std::sqrt(value); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return std::countl_zero(static_cast<unsigned long long>(value)); }
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }
inline int __ffsll(long long value) {
  return value == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(value)) + 1;
}
