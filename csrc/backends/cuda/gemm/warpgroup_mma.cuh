// What the matrix products of our own issue to the tensor cores and the copy engine besides kernels/async_shared.cuh.
// Device code of sm_90a only.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>
#include <cute/numeric/integer_sequence.hpp>

#include "backends/cuda/kernels/async_shared.cuh"

namespace onerec::cuda::kernels {

// --- copies ---

// Plain bytes; both addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void copy_bytes(const void* from, std::uint64_t* barrier, void* shared, int bytes) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

// --- matrix instructions of a warpgroup: sums[64 x kColumns] of 32 bytes of K ---

inline constexpr int kWarpgroupThreads = 128;
inline constexpr int kMmaRows = 64;
inline constexpr int kMmaDepthBytes = 32;
inline constexpr int kTileRowBytes = 128;  // along K, of every tile in shared memory

// Describes a tile of rows of 128 bytes as the copy engine's 128-byte swizzle leaves them; `tile` is a multiple of
// 1024 bytes. Steps of kMmaDepthBytes along K and of whole groups of 8 rows are added as descriptor_step().
__device__ __forceinline__ std::uint64_t tile_descriptor(const void* tile) {
  constexpr std::uint64_t kUnusedStride = 1;
  constexpr std::uint64_t kStrideOfEightRows = 8 * kTileRowBytes / 16;
  constexpr std::uint64_t kSwizzle128 = 1;
  return static_cast<std::uint64_t>((shared_address(tile) & 0x3ffffu) >> 4) | kUnusedStride << 16 |
         kStrideOfEightRows << 32 | kSwizzle128 << 62;
}

constexpr std::uint64_t descriptor_step(int bytes) { return static_cast<std::uint64_t>(bytes) / 16; }

template <bool kCodes, int kColumns>
struct MmaAtom;

namespace gmma = cute::SM90::GMMA;
template <>
struct MmaAtom<true, 16> : gmma::MMA_64x16x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 32> : gmma::MMA_64x32x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 64> : gmma::MMA_64x64x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 96> : gmma::MMA_64x96x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 112> : gmma::MMA_64x112x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 128> : gmma::MMA_64x128x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 160> : gmma::MMA_64x160x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 192> : gmma::MMA_64x192x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 224> : gmma::MMA_64x224x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<true, 256> : gmma::MMA_64x256x32_F32E4M3E4M3_SS_TN<> {};
template <>
struct MmaAtom<false, 16> : gmma::MMA_64x16x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct MmaAtom<false, 32> : gmma::MMA_64x32x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct MmaAtom<false, 64> : gmma::MMA_64x64x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};
template <>
struct MmaAtom<false, 128> : gmma::MMA_64x128x16_F32BF16BF16_SS<gmma::Major::K, gmma::Major::K> {};

// Before matrix instructions whose registers have been touched since the last ones.
__device__ __forceinline__ void begin_mma() { cute::warpgroup_arrive(); }

// Those issued since the last call become a batch.
__device__ __forceinline__ void commit_mma() { cute::warpgroup_commit_batch(); }

// Waits until at most kBatches batches are under way.
template <int kBatches>
__device__ __forceinline__ void wait_mma() {
  cute::warpgroup_wait<kBatches>();
}

template <class Atom, int kCount, int... kIndex>
__device__ __forceinline__ void issue_mma(std::uint64_t rows, std::uint64_t columns, float (&sums)[kCount],
                                          gmma::ScaleOut scale, cute::integer_sequence<int, kIndex...>) {
  Atom::fma(rows, columns, sums[kIndex]..., scale);
}

// sums = (first ? 0 : sums) + rows x columns^T over one tile row's 128 bytes of K. Thread t of the warpgroup holds in
// sums[i] row t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, column i / 4 * 8 + t % 4 * 2 + i % 2.
template <bool kCodes, int kColumns>
__device__ __forceinline__ void multiply_tile(std::uint64_t rows, std::uint64_t columns, bool first,
                                              float (&sums)[kMmaRows * kColumns / kWarpgroupThreads]) {
  constexpr int kCount = kMmaRows * kColumns / kWarpgroupThreads;
#pragma unroll
  for (int k = 0; k < kTileRowBytes / kMmaDepthBytes; ++k) {
    const auto scale = k == 0 && first ? gmma::ScaleOut::Zero : gmma::ScaleOut::One;
    issue_mma<MmaAtom<kCodes, kColumns>>(rows + k * descriptor_step(kMmaDepthBytes),
                                         columns + k * descriptor_step(kMmaDepthBytes), sums, scale,
                                         cute::make_integer_sequence<int, kCount>{});
  }
}

// Keeps the compiler from moving uses of the registers across matrix instructions that are under way.
template <int kCount>
__device__ __forceinline__ void pin_registers(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

// Stores four 8x8 matrices of 16-bit values, transposed. Lane l holds of each matrix row l / 4, columns 2 * (l % 4)
// and the next; lanes 8m to 8m + 7 give the 16-byte places of matrix m's columns.
__device__ __forceinline__ void store_transposed(void* place, const std::uint32_t (&matrices)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(place)),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
}

// The same of two matrices; the places are those that lanes 0 to 15 give.
__device__ __forceinline__ void store_transposed(void* place, const std::uint32_t (&matrices)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(place)),
               "r"(matrices[0]), "r"(matrices[1])
               : "memory");
}

}  // namespace onerec::cuda::kernels
