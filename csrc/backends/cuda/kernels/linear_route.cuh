// The router's product with the choice of experts, for few experts and so few rows that a kernel's start and end count.
// A block takes a chunk of rows; its warps divide the experts and K.
#pragma once

#include "backends/cuda/kernels/async_copy.cuh"
#include "backends/cuda/kernels/bfloat_products.cuh"
#include "backends/cuda/kernels/route.cuh"

namespace onerec::cuda::kernels {

inline constexpr int kRouterRows = 16;     // of a block
inline constexpr int kRouterExperts = 64;  // at most
inline constexpr int kRouterGroup = 16;    // of them, a warp's: the rows of a matrix instruction
inline constexpr int kRouterStep = 32;     // columns of K that a warp takes at a time: 16 bytes of a row are a lane's
inline constexpr int kRouterParts = 4;     // of K
inline constexpr int kRouterHeld = 12;     // steps of a warp whose weights its lanes hold before the kernel waits

static_assert(kRouteThreads / kWarp == kRouterRows, "a warp routes a row");
static_assert(kRouterExperts / kRouterGroup * kRouterParts == kRouteThreads / kWarp,
              "a warp has a group of experts and a part of K");

struct RouterProduct {
  const bf16* x = nullptr;  // [rows, inputs], rows aligned to 16 bytes, as those of the weights
  std::int64_t x_stride = 0;
  const bf16* weights = nullptr;  // [outputs, inputs]
  int outputs = 0;                // at most kRouterExperts
  int inputs = 0;                 // a multiple of kRouterStep
};

// Dynamic shared memory: the rows of x, what the warps have summed, logits, and the chunk's counts.
struct RouterShared {
  uint4* x;       // rows 64 bytes further apart than they are long, so that lanes of two rows use all banks
  float* sums;    // [kRouterParts, kRouterRows, kRouterExperts]
  float* logits;  // [kRouterRows, kRouterExperts]
  int* counts;    // [experts]
  int x_vectors;  // from one row to the next

  __device__ __forceinline__ explicit RouterShared(const RouterProduct& product)
      : x(dynamic_shared<uint4>()), x_vectors(row_vectors(product.inputs)) {
    sums = reinterpret_cast<float*>(x + kRouterRows * x_vectors);
    logits = sums + kRouterParts * kRouterRows * kRouterExperts;
    counts = reinterpret_cast<int*>(logits + kRouterRows * kRouterExperts);
  }
  __host__ __device__ static constexpr int row_vectors(int inputs) { return inputs / 8 + 4; }
  __host__ __device__ static constexpr std::size_t bytes(int inputs, int experts) {
    return static_cast<std::size_t>(kRouterRows * row_vectors(inputs)) * 16 +
           static_cast<std::size_t>((kRouterParts + 1) * kRouterRows * kRouterExperts + experts) * 4;
  }
};

// A warp's products of kRouterRows rows with a group of experts over its part of K.
class RouterProducts {
 public:
  __device__ __forceinline__ RouterProducts(const RouterProduct& product)
      : experts_(warp_index() % (kRouterExperts / kRouterGroup) * kRouterGroup),
        part_(warp_index() / (kRouterExperts / kRouterGroup)),
        steps_(product.inputs / kRouterStep) {
#pragma unroll
    for (int i = 0; i < kRouterHeld; ++i) held_[i] = weights(product, i);
  }

  __device__ __forceinline__ void multiply(const RouterProduct& product, const RouterShared& shared) {
#pragma unroll
    for (int i = 0; i < kRouterHeld; ++i) {
      if (step_of(i) < steps_) add(shared, step_of(i), held_[i]);
    }
    for (int i = kRouterHeld; step_of(i) < steps_; ++i) add(shared, step_of(i), weights(product, i));
  }

  __device__ __forceinline__ void store(const RouterShared& shared) const {
    const int row = lane_index() % 4 * 2;
    const int expert = experts_ + lane_index() / 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        shared.sums[(part_ * kRouterRows + tile * 8 + row + i % 2) * kRouterExperts + expert + i / 2 * 8] =
            sums_[tile][i];
      }
    }
  }

 private:
  static constexpr int kTiles = kRouterRows / 8;
  struct Weights {
    uint4 rows[2];  // of experts 8 apart
  };

  __device__ __forceinline__ int step_of(int i) const { return part_ + i * kRouterParts; }

  __device__ __forceinline__ Weights weights(const RouterProduct& product, int i) const {
    Weights result;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int expert = experts_ + lane_index() / 4 + half * 8;
      result.rows[half] = make_uint4(0, 0, 0, 0);
      if (expert >= product.outputs || step_of(i) >= steps_) continue;
      result.rows[half] = load_vector(product.weights + static_cast<std::int64_t>(expert) * product.inputs +
                                      step_of(i) * kRouterStep + lane_index() % 4 * 8);
    }
    return result;
  }

  __device__ __forceinline__ void add(const RouterShared& shared, int step, const Weights& weights) {
    const uint4& low = weights.rows[0];
    const uint4& high = weights.rows[1];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4 x =
          shared.x[(tile * 8 + lane_index() / 4) * shared.x_vectors + step * (kRouterStep / 8) + lane_index() % 4];
      add_bfloat_products(sums_[tile], {low.x, high.x, low.y, high.y}, {x.x, x.y});
      add_bfloat_products(sums_[tile], {low.z, high.z, low.w, high.w}, {x.z, x.w});
    }
  }

  const int experts_;  // the warp's first one
  const int part_;
  const int steps_;
  Weights held_[kRouterHeld];
  float sums_[kTiles][4] = {};
};

// First of two kernels, in place of route_chunks_kernel: block c makes the logits of chunk c, of kRouterRows rows, and
// routes it. p.logits is not looked at. Shared memory: RouterShared::bytes().
static __global__ void __launch_bounds__(kRouteThreads)
    linear_route_kernel(const RouterProduct product, const RouterParams p) {
  RouterProducts products(product);
  overlap_with_neighbours();
  const std::int64_t rows = live_rows(p);
  const int chunk = static_cast<int>(blockIdx.x);
  const std::int64_t first = static_cast<std::int64_t>(chunk) * kRouterRows;
  if (first >= rows) return;
  const RouterShared shared(product);
  const int vectors = product.inputs / 8;
  // A warp brings a row; those behind the live ones are the last one again.
  const bf16* const from = product.x + min(first + warp_index(), rows - 1) * product.x_stride;
  for (int i = lane_index(); i < vectors; i += kWarp) {
    copy_vector_async(shared.x + warp_index() * shared.x_vectors + i, from + i * 8);
  }
  close_copies();
  for (int e = static_cast<int>(threadIdx.x); e < p.experts; e += kRouteThreads) shared.counts[e] = 0;
  wait_for_copies<0>();
  __syncthreads();
  products.multiply(product, shared);
  products.store(shared);
  __syncthreads();
  constexpr int kLogits = kRouterRows * kRouterExperts;
  for (int i = static_cast<int>(threadIdx.x); i < kLogits; i += kRouteThreads) {
    float sum = shared.sums[i];
#pragma unroll
    for (int part = 1; part < kRouterParts; ++part) sum += shared.sums[part * kLogits + i];
    shared.logits[i] = sum;
  }
  __syncthreads();
  constexpr int kSlots = kRouterExperts / kWarp;
  route_rows<kSlots>(p, first, min(first + kRouterRows, rows), shared.counts,
                     [&](std::int64_t r) { return shared.logits + (r - first) * kRouterExperts; });
  for (int e = static_cast<int>(threadIdx.x); e < p.experts; e += kRouteThreads) {
    p.counts[chunk * p.experts + e] = shared.counts[e];
  }
}

}  // namespace onerec::cuda::kernels
