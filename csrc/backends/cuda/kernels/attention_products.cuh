// What warpgroups of the tensor-core cross-attention do with a tile in shared memory.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/flash_attention_memory.cuh"

namespace onerec::cuda::kernels {

// A barrier of the threads of a multiplying warpgroup.
__device__ __forceinline__ void sync_warpgroup(int warpgroup) { sync_threads(1 + warpgroup, kWarpgroup); }

// Sets the rows from `tokens` on of a tile of values to 0: what lies behind a request may be anything, and 0 * NaN is
// not 0. Every warpgroup that multiplies the tile does it, so that none waits for another. A row's chunks stay within
// its 128 bytes.
template <class Config>
__device__ __forceinline__ void clear_tail(unsigned char* tile, int tokens, int thread) {
  constexpr int kRowChunks = Config::kPanels * kPanelChunks;
  for (int i = tokens * kRowChunks + thread; i < Config::kTokens * kRowChunks; i += kWarpgroup) {
    const int row = i / kRowChunks;
    const int chunk = i % kRowChunks;
    *reinterpret_cast<uint4*>(tile + chunk_offset(Config::kTokens, row, chunk)) = make_uint4(0, 0, 0, 0);
  }
}

// Starts c (+)= a b; a wait for this group of products makes c readable.
template <class Mma, class A, class B, class C>
__device__ __forceinline__ void start_product(Mma& mma, cute::GMMA::ScaleOut first, A const& a, B const& b, C& c) {
  cute::warpgroup_fence_operand(c);
  cute::warpgroup_arrive();
  mma.accumulate_ = first;
#pragma unroll
  for (int k = 0; k < cute::size<2>(a); ++k) {
    cute::gemm(mma, a(cute::_, cute::_, k), b(cute::_, cute::_, k), c);
    mma.accumulate_ = cute::GMMA::ScaleOut::One;
  }
  cute::warpgroup_commit_batch();
}

// An operand of `mma` that lies in shared memory as Layout says: queries on the left, keys or values on the right.
template <class Layout, class Mma>
__device__ __forceinline__ auto left_operand(const Mma& mma, int thread, unsigned char* bytes) {
  const auto data = cute::make_smem_ptr(reinterpret_cast<cute::bfloat16_t*>(bytes));
  return mma.get_slice(thread).partition_fragment_A(cute::make_tensor(data, Layout{}));
}
template <class Layout, class Mma>
__device__ __forceinline__ auto right_operand(const Mma& mma, int thread, unsigned char* bytes) {
  const auto data = cute::make_smem_ptr(reinterpret_cast<cute::bfloat16_t*>(bytes));
  return mma.get_slice(thread).partition_fragment_B(cute::make_tensor(data, Layout{}));
}

// A thread's part of a warpgroup's product of kColumns columns.
template <int kColumns, class Mma>
__device__ __forceinline__ auto accumulators(const Mma& mma) {
  return cute::partition_fragment_C(mma, cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<kColumns>>{});
}

// The same of scores, rounded: a left-hand side in registers.
template <int kColumns>
__device__ __forceinline__ auto numerator_registers() {
  using Part = cute::Shape<cute::_2, cute::_2, cute::_2>;
  return cute::make_tensor<cute::bfloat16_t>(cute::Layout<cute::Shape<Part, cute::_1, cute::Int<kColumns / 16>>>{});
}

}  // namespace onerec::cuda::kernels
