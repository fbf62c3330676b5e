// How a warpgroup of the tensor-core cross-attention stores what it has summed.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "backends/cuda/kernels/running_softmax.cuh"

namespace onerec::cuda::kernels {

// The same thread, which the compiler cannot tell. What is computed from it in a loop stays there: a warpgroup that
// multiplies has no registers for what every item has in common.
__device__ __forceinline__ int thread_anew(int thread) {
  asm volatile("" : "+r"(thread));
  __builtin_assume(thread >= 0 && thread < kWarpgroup);
  return thread;
}

// The live queries of a warpgroup: those of some rows, and of the heads of a group.
struct WarpgroupQueries {
  std::int64_t first_row;  // of q and out
  int first_head;          // of the group
  int count;
};

// Where a query lies in an array [rows, heads, ...] beside the first one of its warpgroup.
__device__ __forceinline__ std::int64_t query_offset(const FlashAttentionArguments& args, int index,
                                                     std::int64_t row_stride, int head_stride) {
  const int row = divide_small(index, args.group_reciprocal);
  return row * row_stride + (index - row * args.group_heads) * head_stride;
}

template <int kHeadDim>
__device__ __forceinline__ __nv_bfloat16* first_output(const FlashAttentionArguments& args,
                                                       const WarpgroupQueries& queries) {
  return args.out + queries.first_row * args.out_stride + queries.first_head * kHeadDim;
}

// Divides the sums by the denominators and stores the live rows, in chunks of 16 bytes by way of the queries' memory,
// which is free for the next copy behind it.
template <int kHeadDim, class Sums>
__device__ __forceinline__ void store_output(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                             const Sums& sums, const float (&denominator)[2], unsigned char* shared,
                                             int thread) {
  constexpr int kChunks = kHeadDim / kChunkColumns;
  constexpr int kRows = 32 / kChunks;  // that a warp stores at once
  constexpr int kSteps = 16 / kRows;
  const float inverse[2] = {1.0f / denominator[0], 1.0f / denominator[1]};
  const int own = chunk_offset(kWarpgroupRows, accumulator_row(thread, 0), 0) + accumulator_column(thread, 0) * 2;
#pragma unroll
  for (int e = 0; e < kHeadDim / 2; e += 2) {
    // The second row is eight rows below the first one: its chunks are permuted alike.
    const int offset = move_to_chunk(kWarpgroupRows, own, e / 4) + row_half(e) * 8 * kPanelRowBytes;
    *reinterpret_cast<std::uint32_t*>(shared + offset) =
        pack_pair(sums(e) * inverse[row_half(e)], sums(e + 1) * inverse[row_half(e)]);
  }
  publish_shared();
  __syncwarp();  // a warp has its 16 rows to itself
  const int first = thread / 32 * 16 + thread % 32 / kChunks;
  const int chunk = thread % kChunks;
  uint4 values[kSteps];
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int offset = chunk_offset(kWarpgroupRows, first + step * kRows, chunk);
    values[step] = *reinterpret_cast<const uint4*>(shared + offset);
  }
  __nv_bfloat16* const to = first_output<kHeadDim>(args, queries) + chunk * kChunkColumns;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int index = first + step * kRows;
    if (index < queries.count) {
      *reinterpret_cast<uint4*>(to + query_offset(args, index, args.out_stride, kHeadDim)) = values[step];
    }
  }
}

// Of a query in an array [splits, rows, heads].
__device__ __forceinline__ std::int64_t split_index(const FlashAttentionArguments& args,
                                                    const WarpgroupQueries& queries, int split, int index) {
  return (split * args.rows_capacity + queries.first_row) * args.heads + queries.first_head +
         query_offset(args, index, args.heads, 1);
}

template <int kHeadDim, class Sums>
__device__ __forceinline__ void store_split(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                            int split, const Sums& sums, const RunningSoftmax& softmax,
                                            const float (&denominator)[2], int thread) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int index = accumulator_row(thread, 2 * half);
    if (index >= queries.count) continue;
    const std::int64_t place = split_index(args, queries, split, index);
    float* to = args.split_sums + place * kHeadDim;
#pragma unroll
    for (int e = 2 * half; e < kHeadDim / 2; e += 4) {
      *reinterpret_cast<float2*>(to + accumulator_column(thread, e)) = make_float2(sums(e), sums(e + 1));
    }
    if (thread % 4 == 0) args.split_norms[place] = make_float2(softmax.base[half], denominator[half]);
  }
}

// Without context tokens: the output is 0, and a split says that it has nothing to add.
template <int kHeadDim>
__device__ __forceinline__ void store_nothing(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                              int split, int thread) {
  constexpr int kChunks = kHeadDim / kChunkColumns;
  if (args.schedule.splits > 1) {
    if (thread < queries.count) {
      args.split_norms[split_index(args, queries, split, thread)] = make_float2(-INFINITY, -1.0f);
    }
    return;
  }
#pragma unroll 1
  for (int i = thread; i < queries.count * kChunks; i += kWarpgroup) {
    *reinterpret_cast<uint4*>(first_output<kHeadDim>(args, queries) +
                              query_offset(args, i / kChunks, args.out_stride, kHeadDim) +
                              i % kChunks * kChunkColumns) = make_uint4(0, 0, 0, 0);
  }
}

}  // namespace onerec::cuda::kernels
