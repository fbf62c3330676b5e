// How a warpgroup of the tensor-core cross-attention stores what it has summed, or sends it to the other block of a
// pair.
#pragma once

#include "backends/cuda/kernels/async_shared.cuh"
#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/block_cluster.cuh"
#include "backends/cuda/kernels/flash_attention_arguments.cuh"
#include "backends/cuda/kernels/flash_attention_memory.cuh"
#include "backends/cuda/kernels/numeric.cuh"
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

// Of a warpgroup's first query in an array [rows, heads * head_dim].
template <int kHeadDim>
__device__ __forceinline__ std::int64_t first_offset(const WarpgroupQueries& queries, std::int64_t row_stride) {
  return queries.first_row * row_stride + queries.first_head * kHeadDim;
}

// By the warpgroup that has the rows' first head.
__device__ __forceinline__ void store_scales(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                             int thread) {
  if (queries.first_head == 0 && thread * args.group_heads < queries.count) {
    args.codes.scales[queries.first_row + thread] = args.codes.scale;
  }
}

// Of eight values in units of the scale.
__device__ __forceinline__ uint2 codes_of(uint4 rounded) {
  float values[kChunkColumns];
  unpack<bf16>(rounded, values);
  return make_uint2(numbers_to_e4m3x4(values[0], values[1], values[2], values[3]),
                    numbers_to_e4m3x4(values[4], values[5], values[6], values[7]));
}

// Divides the sums by the denominators and stores the live rows or their codes, in chunks of eight columns by way of
// the queries' memory, which is free for the next copy behind it.
template <int kHeadDim, class Sums>
__device__ __forceinline__ void store_output(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                             const Sums& sums, const float (&denominator)[2], unsigned char* shared,
                                             int thread) {
  constexpr int kChunks = kHeadDim / kChunkColumns;
  constexpr int kRows = 32 / kChunks;  // that a warp stores at once
  constexpr int kSteps = 16 / kRows;
  // In units of the codes' scale, a power of two: rounding comes to the same.
  const float inverse[2] = {args.codes.inverse / denominator[0], args.codes.inverse / denominator[1]};
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
  if (args.codes.codes == nullptr) {
    __nv_bfloat16* const to = args.out + first_offset<kHeadDim>(queries, args.out_stride) + chunk * kChunkColumns;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int index = first + step * kRows;
      if (index < queries.count) {
        *reinterpret_cast<uint4*>(to + query_offset(args, index, args.out_stride, kHeadDim)) = values[step];
      }
    }
    return;
  }
  store_scales(args, queries, thread);
  std::uint8_t* const to =
      args.codes.codes + first_offset<kHeadDim>(queries, args.codes.stride) + chunk * kChunkColumns;
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int index = first + step * kRows;
    if (index < queries.count) {
      *reinterpret_cast<uint2*>(to + query_offset(args, index, args.codes.stride, kHeadDim)) = codes_of(values[step]);
    }
  }
}

// --- pairs ---

// To the same thread of block `rank` of the pair: the sums, and what they are relative to.
template <class Config, class Sums>
__device__ __forceinline__ void send_part(const FlashAttentionMemory<Config>& memory, int rank, const Sums& sums,
                                          const RunningSoftmax& softmax, int thread) {
  const std::uint32_t mail = address_in_cluster(memory.mail(), rank);
  const std::uint32_t first = address_in_cluster(memory.sent(0), rank) + thread * kUnitSums * 4;
  const auto place = [&](int unit) { return first + static_cast<std::uint32_t>(memory.sent(unit) - memory.sent(0)); };
#pragma unroll
  for (int unit = 0; unit < Config::kUnits; ++unit) {
    const int e = unit * kUnitSums;
    send_four(place(unit), mail, sums(e), sums(e + 1), sums(e + 2), sums(e + 3));
  }
  send_four(place(Config::kUnits), mail, softmax.base[0], softmax.base[1], softmax.sum[0], softmax.sum[1]);
}

// Adds what send_part() of the other block sends, and makes the denominators of both parts together.
template <class Config, class Sums>
__device__ __forceinline__ void add_part(const FlashAttentionMemory<Config>& memory, Sums& sums,
                                         const RunningSoftmax& softmax, float (&denominator)[2], int thread) {
  static_assert(kUnitSums == 4, "a unit has two sums of each row");
  wait_for_mail(memory.mail());
  const auto unit_of = [&](int unit) { return *(reinterpret_cast<const float4*>(memory.sent(unit)) + thread); };
  const float4 other = unit_of(Config::kUnits);
  const PartWeights weights[2] = {{softmax.base[0], other.x}, {softmax.base[1], other.y}};
  denominator[0] = sum_of_four_lanes(weights[0].add(softmax.sum[0], other.z));
  denominator[1] = sum_of_four_lanes(weights[1].add(softmax.sum[1], other.w));
#pragma unroll
  for (int unit = 0; unit < Config::kUnits; ++unit) {
    const int e = unit * kUnitSums;
    const float4 others = unit_of(unit);
    sums(e) = weights[0].add(sums(e), others.x);
    sums(e + 1) = weights[0].add(sums(e + 1), others.y);
    sums(e + 2) = weights[1].add(sums(e + 2), others.z);
    sums(e + 3) = weights[1].add(sums(e + 3), others.w);
  }
}

// --- splits that another kernel adds up ---

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

// Without context tokens: the output is 0, and a split that another kernel adds up says that it has nothing to add.
template <int kHeadDim>
__device__ __forceinline__ void store_nothing(const FlashAttentionArguments& args, const WarpgroupQueries& queries,
                                              int split, int thread) {
  constexpr int kChunks = kHeadDim / kChunkColumns;
  if (args.split_norms != nullptr) {
    if (thread < queries.count) {
      args.split_norms[split_index(args, queries, split, thread)] = make_float2(-INFINITY, -1.0f);
    }
    return;
  }
  const bool coded = args.codes.codes != nullptr;
  if (coded) store_scales(args, queries, thread);
  const std::int64_t stride = coded ? args.codes.stride : args.out_stride;
  const std::int64_t first = first_offset<kHeadDim>(queries, stride);
#pragma unroll 1
  for (int i = thread; i < queries.count * kChunks; i += kWarpgroup) {
    const std::int64_t at = first + query_offset(args, i / kChunks, stride, kHeadDim) + i % kChunks * kChunkColumns;
    if (coded) {
      *reinterpret_cast<uint2*>(args.codes.codes + at) = make_uint2(0, 0);
    } else {
      *reinterpret_cast<uint4*>(args.out + at) = make_uint4(0, 0, 0, 0);
    }
  }
}

}  // namespace onerec::cuda::kernels
