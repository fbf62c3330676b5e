// The matrix library behind the linears: its kernels, row independence, and what a replay allocates.
#include "backends/cpu/gemm.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "ops/linear.h"
#include "support/openblas.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/weights.h"

namespace {

// Calls of operator new while counting: those made by the matrix library, and all others.
std::atomic<bool> counting = false;
std::atomic<std::int64_t> library_allocations = 0;
std::atomic<std::int64_t> our_allocations = 0;

bool in_matrix_library(const void* address) {
  Dl_info info = {};
  return dladdr(address, &info) != 0 && info.dli_fname != nullptr && std::strstr(info.dli_fname, "dnnl") != nullptr;
}

}  // namespace

// Kept out of line: for the return address, and because GCC would take an inlined malloc and operator delete for a
// mismatch.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  if (counting) ++(in_matrix_library(__builtin_return_address(0)) ? library_allocations : our_allocations);
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestInput;
using test::TestMatrix;
using test::TestWeight;

class Gemm : public testing::TestWithParam<DType> {
 protected:
  // [rows, cols] of GetParam(), as bytes.
  std::vector<unsigned char> random_values(std::int64_t rows, std::int64_t cols) {
    return test::random_matrix(random_, GetParam(), rows, cols).snapshot();
  }
  Random random_{1};
};

TEST_P(Gemm, RowsHaveTheSameBitsAnywhereInAnyBatch) {
  ONEREC_CPU_ONLY();
  if (!test::rows_are_independent() || !test::library_keeps_rows()) GTEST_SKIP() << "this library does not promise it";
  if (cpu::gemm_type(GetParam()) != GetParam()) GTEST_SKIP() << "this machine multiplies it as float32";
  // Where the processor has matrix tiles, oneDNN does without them for few rows of {700, 131} and of the narrow panel
  // of {444, 31}, and takes them for one row alone of {200, 24}.
  for (const auto& [n, k] :
       {std::pair<std::int64_t, std::int64_t>{256, 256}, {700, 131}, {640, 1280}, {8, 16}, {444, 31}, {200, 24}}) {
    constexpr std::int64_t kRows = 300;
    const auto packed = cpu::pack_matrix(GetParam(), 1, n, k, random_values(n, k).data());
    EXPECT_GE(packed->bytes, static_cast<std::size_t>(n * k) * size_of(GetParam()));
    const auto a = random_values(kRows, k);
    const auto gemm = cpu::make_gemm(*packed, kRows, 1);
    const test::GuardedBuffer scratch(gemm->scratch_bytes());
    for (std::int64_t panel = 0; panel < packed->panels; ++panel) {
      const std::int64_t width = packed->width_of(panel);
      TestArray<float> whole(kRows * width);
      ASSERT_TRUE(gemm->run(0, panel, kRows, a.data(), whole.get(), scratch.data()));
      for (std::int64_t rows = 1; rows < kRows; rows = rows < 40 ? rows + 1 : rows + 37) {
        TestArray<float> part(rows * width);
        ASSERT_TRUE(gemm->run(0, panel, rows, a.data(), part.get(), scratch.data()));
        ASSERT_EQ(std::memcmp(part.data(), whole.data(), part.bytes()), 0)
            << rows << " rows of " << k << " -> " << n << " by " << gemm->kernel_name(rows);
        ASSERT_TRUE(part.guards_intact() && scratch.guards_intact());
      }
      for (const std::int64_t first : {1, 5, 31, 299}) {
        TestArray<float> part((kRows - first) * width);
        const auto* from = a.data() + static_cast<std::size_t>(first * k) * size_of(GetParam());
        ASSERT_TRUE(gemm->run(0, panel, kRows - first, from, part.get(), scratch.data()));
        ASSERT_EQ(std::memcmp(part.data(), whole.get() + first * width, part.bytes()), 0) << "from row " << first;
      }
      for (const std::int64_t rows : {1, 3, 20}) {
        const auto small = cpu::make_gemm(*packed, rows, 1);
        const test::GuardedBuffer small_scratch(small->scratch_bytes());
        TestArray<float> part(rows * width);
        ASSERT_TRUE(small->run(0, panel, rows, a.data(), part.get(), small_scratch.data()));
        ASSERT_EQ(std::memcmp(part.data(), whole.data(), part.bytes()), 0) << rows << " rows at most";
        ASSERT_TRUE(part.guards_intact() && small_scratch.guards_intact());
      }
    }
  }
}

TEST_P(Gemm, NoKernelIsTheSlowReference) {
  ONEREC_CPU_ONLY();
  if (cpu::gemm_type(GetParam()) != GetParam()) GTEST_SKIP() << "this machine multiplies it as float32";
  const auto packed = cpu::pack_matrix(GetParam(), 2, 700, 131, random_values(1400, 131).data());
  const auto gemm = cpu::make_gemm(*packed, 256, 1);
  for (const std::int64_t rows : {1, 3, 8, 16, 100, 256}) {
    EXPECT_EQ(gemm->kernel_name(rows).find("ref"), std::string::npos) << gemm->kernel_name(rows);
  }
  RecordProperty("kernel", gemm->kernel_name(64));
}

INSTANTIATE_TEST_SUITE_P(Types, Gemm, testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(GemmShared, OneProductMayRunOnManyThreadsAtATime) {
  ONEREC_CPU_ONLY();
  Random random(3);
  const auto packed = cpu::pack_matrix(DType::kF32, 1, 96, 64, test::random_matrix(random, DType::kF32, 96, 64).data());
  const TestMatrix a = test::random_matrix(random, DType::kF32, 50, 64);
  const auto gemm = cpu::make_gemm(*packed, 50, 1);  // fewer threads announced than come
  std::vector<std::vector<float>> sums(4, std::vector<float>(50 * 96));
  std::vector<std::thread> threads;
  for (auto& result : sums) {
    threads.emplace_back([&] {
      const test::GuardedBuffer scratch(gemm->scratch_bytes());
      for (int i = 0; i < 20; ++i) gemm->run(0, 0, 50, a.data(), result.data(), scratch.data());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : sums) EXPECT_EQ(result, sums[0]);
}

TEST(GemmShared, AReplayAllocatesNothingOfOurs) {
  ONEREC_CPU_ONLY();
  for (const WeightFormat format : {WeightFormat::kDense, WeightFormat::kFp8Channel}) {
    const DType dtype = format == WeightFormat::kDense ? DType::kBF16 : DType::kE4M3;
    Random random(1);
    Runner runner(2);
    const TestWeight weight(runner.backend(), random, format, dtype, 1, 256, 256);
    const TestInput x(random, format, dtype, 128, 256);
    TestMatrix y(DType::kBF16, 128, 256);
    const LinearParams params{
        .x = x.view(), .weight = weight.packed(), .residual = y.view(), .y = y.view(), .rows = {128}};
    const auto issue = [&](OpContext& context) { linear(context, params); };
    const test::GuardedBuffer workspace(runner.measure(issue));
    OpContext context{
        .backend = runner.backend(), .stream = runner.stream(), .workspace = {workspace.data(), workspace.bytes()}};
    runner.stream().begin_recording();
    issue(context);
    const auto recording = runner.stream().end_recording();
    for (int i = 0; i < 3; ++i) recording->replay(runner.stream());
    counting = true;
    for (int i = 0; i < 10; ++i) recording->replay(runner.stream());
    counting = false;
  }
  EXPECT_EQ(our_allocations, 0);
  // oneDNN 3.2 makes eight small ones per call: it keeps the call's arguments in a map.
  RecordProperty("library_allocations", std::to_string(library_allocations));
}

}  // namespace
}  // namespace onerec
