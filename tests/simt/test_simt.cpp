// The emulation: what it runs and what it finds wrong. And the kernels' conversions against those of core/.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "backends/cuda/kernels/block.cuh"
#include "backends/cuda/kernels/grid_dependency.cuh"
#include "backends/cuda/launch.h"
#include "core/bfloat16.h"
#include "core/error.h"
#include "core/float8.h"

namespace onerec::simt {
namespace {

namespace kernels = cuda::kernels;

template <class... Params, class... Args>
void run(void (*kernel)(Params...), const cuda::LaunchShape& shape, Args... args) {
  SimtStream stream;
  cuda::launch(stream, "test", kernel, shape, args...);
}

// What is wrong with a kernel; it stays wrong when the threads run backwards.
template <class... Params, class... Args>
void expect_failure(const std::string& part, void (*kernel)(Params...), const cuda::LaunchShape& shape, Args... args) {
  for (int direction = 0; direction < 2; ++direction) {
    try {
      run(kernel, shape, args...);
      ADD_FAILURE() << "nothing found, want: " << part;
    } catch (const InternalError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

__global__ void write_indices(unsigned* out) {
  kernels::wait_for_previous_kernel();
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST(Simt, RunsEveryThreadOnce) {
  std::vector<unsigned> out(12 * 30, ~0u);
  run(write_indices, {dim3(3, 2, 2), dim3(5, 3, 2)}, out.data());
  for (unsigned i = 0; i < out.size(); ++i) EXPECT_EQ(out[i], i / 30 * 1000 + i % 30);
}

TEST(Simt, RecordsKernels) {
  SimtStream stream;
  std::vector<unsigned> out(4, ~0u);
  stream.begin_recording();
  cuda::launch(stream, "test", write_indices, {1, 4}, out.data());
  const auto recording = stream.end_recording();
  EXPECT_EQ(out[3], ~0u);
  recording->replay(stream);
  EXPECT_EQ(out[3], 3u);
}

__global__ void reduce(const float* in, float* out) {
  kernels::wait_for_previous_kernel();
  const float value = in[blockIdx.x * blockDim.x + threadIdx.x];
  const float sum = kernels::block_sum(value);
  const float most = kernels::block_max_magnitude(fabsf(value));
  const float lanes = kernels::warp_sum<8>(value);
  if (threadIdx.x == blockDim.x - 1) {
    out[3 * blockIdx.x] = sum;
    out[3 * blockIdx.x + 1] = most;
    out[3 * blockIdx.x + 2] = lanes;
  }
}

TEST(Simt, SumsAndMaximaOfBlocks) {
  for (const unsigned threads : {32u, 96u, 1024u}) {
    std::vector<float> in(2 * threads);
    for (unsigned i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 7) - 3.0f;
    in[0] = -9.0f;
    in[2 * threads - 3] = std::nanf("");
    float out[6];
    run(reduce, {2, threads}, in.data(), &out[0]);
    float sum = 0.0f, lanes = 0.0f;
    for (unsigned i = 0; i < threads; ++i) sum += in[i];
    for (unsigned i = threads - 8; i < threads; ++i) lanes += in[i];
    EXPECT_EQ(out[0], sum);
    EXPECT_EQ(out[1], 9.0f);
    EXPECT_EQ(out[2], lanes);
    EXPECT_TRUE(std::isnan(out[3]) && std::isnan(out[4]) && std::isnan(out[5]));
  }
}

__global__ void votes(unsigned* out) {
  kernels::wait_for_previous_kernel();
  const unsigned lane = threadIdx.x;
  out[lane] = __ballot_sync(~0u, lane % 3 == 0);
  out[32 + lane] = __match_any_sync(~0u, lane / 4);
  out[64 + lane] = __shfl_up_sync(~0u, lane, 2, 16);
  out[96 + lane] = __shfl_down_sync(~0u, lane, 2, 16);
  out[128 + lane] = __shfl_sync(~0u, lane, 5, 8);
  if (lane < 8) out[160 + lane] = __shfl_xor_sync(0xffu, lane, 1);
  out[192 + lane] = static_cast<unsigned>(__any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane == 7));
}

TEST(Simt, ShufflesAndVotes) {
  std::vector<unsigned> out(224);
  run(votes, {1, 32}, out.data());
  for (unsigned lane = 0; lane < 32; ++lane) {
    EXPECT_EQ(out[lane], 0x49249249u);
    EXPECT_EQ(out[32 + lane], 0xfu << (lane / 4 * 4));
    EXPECT_EQ(out[64 + lane], lane % 16 < 2 ? lane : lane - 2);
    EXPECT_EQ(out[96 + lane], lane % 16 >= 14 ? lane : lane + 2);
    EXPECT_EQ(out[128 + lane], lane / 8 * 8 + 5);
    if (lane < 8) {
      EXPECT_EQ(out[160 + lane], lane ^ 1u);
    }
    EXPECT_EQ(out[192 + lane], 1u);
  }
}

__global__ void read_fresh_shared(unsigned* out) {
  kernels::wait_for_previous_kernel();
  __shared__ unsigned fixed[32];
  unsigned* const dynamic = kernels::dynamic_shared<unsigned>();
  out[blockIdx.x * 64 + threadIdx.x] = fixed[threadIdx.x];
  out[blockIdx.x * 64 + 32 + threadIdx.x] = dynamic[threadIdx.x];
  fixed[threadIdx.x] = dynamic[threadIdx.x] = 5;
}

thread_local int of_the_program = 17;

TEST(Simt, SharedMemoryIsPoisonedForEveryBlockAndNothingElseIs) {
  of_the_program = 18;
  std::vector<unsigned> out(3 * 64);
  run(read_fresh_shared, {3, 32, 128}, out.data());
  for (const unsigned value : out) EXPECT_EQ(value, ~0u);
  EXPECT_EQ(of_the_program, 18);
}

// Thread i takes what thread i + 1 wrote, without a barrier between.
__global__ void race(int* out) {
  kernels::wait_for_previous_kernel();
  __shared__ int values[64];
  values[threadIdx.x] = 1;
  out[threadIdx.x] = values[(threadIdx.x + 1) % 64];
}

TEST(Simt, TwoRunsDifferWhereABarrierIsMissing) {
  std::vector<int> first(64), second(64);
  run(race, {1, 64}, first.data());
  run(race, {1, 64}, second.data());
  EXPECT_NE(first, second);
}

__global__ void return_before_barrier() {
  kernels::wait_for_previous_kernel();
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void miss_a_lane() {
  kernels::wait_for_previous_kernel();
  if (threadIdx.x != 3) __syncwarp();
}

__global__ void name_too_few_lanes() {
  kernels::wait_for_previous_kernel();
  __shfl_sync(threadIdx.x < 16 ? 0xffffu : 0xffff0000u, 1, 20);
}

__global__ void forget_to_wait() {}

__global__ void overrun_shared() {
  kernels::wait_for_previous_kernel();
  kernels::dynamic_shared<char>()[100 + threadIdx.x] = 1;
}

TEST(Simt, FindsWhatIsWrong) {
  expect_failure("thread 40: has returned", return_before_barrier, {2, 64});
  expect_failure("threads 41 to 63: waits at __syncthreads() (", return_before_barrier, {2, 64});
  expect_failure("thread 3: has returned", miss_a_lane, {1, 32});
  expect_failure("a mask names lanes that the block has not", miss_a_lane, {1, 8});
  expect_failure("a thread reads a lane that does not take part", name_too_few_lanes, {1, 32});
  expect_failure("returned without wait_for_previous_kernel()", forget_to_wait, {1, 32});
  expect_failure("outside of the dynamic shared memory", overrun_shared, {1, 1, 100});
  // And goes on working.
  std::vector<unsigned> out(4);
  run(write_indices, {1, 4}, out.data());
  EXPECT_EQ(out[3], 3u);
}

// --- conversions ---

// Every upper half of an FP32 value with lower halves around the rounding positions.
template <class F>
void for_every_kind_of_float(const F& f) {
  for (std::uint32_t high = 0; high < 0x10000u; ++high) {
    for (const std::uint32_t low : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      f(std::bit_cast<float>(high << 16 | low));
    }
  }
}

TEST(Conversions, CodesAreThoseOfCore) {
  int different = 0;
  for_every_kind_of_float([&](float value) {
    const std::uint8_t want = to_e4m3(value);
    different += kernels::to_e4m3(value) != want;
    const std::uint32_t four = kernels::to_e4m3x4(value, -value, 1.0f, value);
    different += four != (want | std::uint32_t{to_e4m3(-value)} << 8 | 0x380000u | std::uint32_t{want} << 24);
  });
  EXPECT_EQ(different, 0);
}

TEST(Conversions, ValuesOfCodesAreThoseOfCore) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const float want = from_e4m3(static_cast<std::uint8_t>(code));
    float four[4];
    kernels::from_e4m3x4(code | code << 24 | 0x3800u, four);
    for (const float got : {kernels::from_e4m3(static_cast<std::uint8_t>(code)), four[0], four[3]}) {
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(got)) << code;
      } else {
        EXPECT_EQ(std::bit_cast<std::uint32_t>(got), std::bit_cast<std::uint32_t>(want)) << code;
      }
    }
    EXPECT_EQ(four[1], 1.0f);
  }
}

TEST(Conversions, BFloat16IsThatOfCore) {
  int different = 0;
  for_every_kind_of_float([&](float value) {
    const BFloat16 want = to_bfloat16(value);
    float values[8] = {value, 1.0f, 2.0f, 3.0f, 4.0f, 5.0f, 6.0f, value};
    float back[8];
    kernels::unpack<kernels::bf16>(kernels::pack<kernels::bf16>(values), back);
    for (const float got : {kernels::to_float(kernels::from_float<kernels::bf16>(value)), back[0], back[7]}) {
      different += std::isnan(value)
                       ? !std::isnan(got)
                       : std::bit_cast<std::uint32_t>(got) != std::bit_cast<std::uint32_t>(to_float(want));
    }
    different += back[5] != 5.0f;
  });
  EXPECT_EQ(different, 0);
}

TEST(Conversions, ScalesAreThoseOfCore) {
  int different = 0;
  for_every_kind_of_float([&](float amax) {
    const float got = kernels::e4m3_scale(amax);
    const float want = e4m3_scale(amax);
    different += std::isnan(want) ? !std::isnan(got) : got != want;
    different += std::isnan(amax) ? !std::isnan(kernels::max_or_nan(1.0f, amax))
                                  : kernels::max_or_nan(amax, 1.0f) != std::max(amax, 1.0f);
  });
  EXPECT_EQ(different, 0);
}

}  // namespace
}  // namespace onerec::simt
