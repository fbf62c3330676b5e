// Streams: the order of what is issued across fork and join, directly and recorded.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "ops/rms_norm.h"
#include "ops/swiglu.h"
#include "support/device.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestMatrix;

bool all_are(const Buffer& buffer, int value) {
  const auto* bytes = static_cast<const unsigned char*>(buffer.data());
  return std::all_of(bytes, bytes + buffer.bytes(), [&](unsigned char byte) { return byte == value; });
}

// Large enough that a copy that does not wait for a fill reads what was there before.
TEST(Stream, ABranchComesBehindItsForkAndAheadOfItsJoin) {
  constexpr std::size_t kBytes = std::size_t{1} << 24;
  const std::unique_ptr<Backend> backend = test::make_test_backend(2);
  Device& device = backend->device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<Buffer> first = device.allocate(kBytes);
  const std::unique_ptr<Buffer> second = device.allocate(kBytes);
  const std::unique_ptr<Buffer> before_fork = device.allocate_pinned(kBytes);
  const std::unique_ptr<Buffer> in_branch = device.allocate_pinned(kBytes);
  const std::unique_ptr<Buffer> behind_join = device.allocate_pinned(kBytes);

  const auto issue = [&](int value) {
    stream->fill(first->data(), value, kBytes);
    Stream& branch = stream->fork();
    branch.copy_to_host(before_fork->data(), first->data(), kBytes);
    branch.fill(second->data(), value + 1, kBytes);
    branch.copy_to_host(in_branch->data(), second->data(), kBytes);
    stream->join();
    stream->fill(first->data(), value + 2, kBytes);
    stream->copy_to_host(behind_join->data(), second->data(), kBytes);
    // A second branch, which the end of a recording joins.
    stream->fork().fill(second->data(), value + 3, kBytes);
  };
  const auto check = [&](int value) {
    EXPECT_TRUE(all_are(*before_fork, value));
    EXPECT_TRUE(all_are(*in_branch, value + 1));
    EXPECT_TRUE(all_are(*behind_join, value + 1));
    stream->copy_to_host(behind_join->data(), second->data(), kBytes);
    stream->copy_to_host(before_fork->data(), first->data(), kBytes);
    stream->synchronize();
    EXPECT_TRUE(all_are(*behind_join, value + 3));
    EXPECT_TRUE(all_are(*before_fork, value + 2));
  };

  for (const int value : {10, 20}) {
    issue(value);
    stream->join();
    stream->synchronize();
    check(value);
  }
  stream->begin_recording();
  issue(30);
  const std::unique_ptr<Recording> recording = stream->end_recording();
  for (int replay = 0; replay < 2; ++replay) {
    stream->fill(first->data(), 0, kBytes);
    stream->fill(second->data(), 0, kBytes);
    recording->replay(*stream);
    stream->synchronize();
    check(30);
  }
}

// A chain of ops in which every link needs both sides of the one before it.
TEST(Stream, OpsOnBothSidesGiveWhatTheyGiveInOneLine) {
  constexpr std::int64_t kWidth = 512;
  const std::int64_t rows = test::at_most_on_simt(256, 8);
  const std::int64_t links = test::at_most_on_simt(64, 4);
  Random random(7);
  const TestArray<float> gate_gamma = test::random_floats(random, kWidth);
  const TestArray<float> up_gamma = test::random_floats(random, kWidth);
  const TestMatrix start = test::random_matrix(random, DType::kF32, rows, kWidth, 1.0f);

  const auto norm = [&](OpContext& context, const ConstMatrix& x, const float* gamma, const Matrix& y) {
    rms_norm(context, {.x = x, .gamma = gamma, .width = kWidth, .y = y, .rows = {rows, nullptr}});
  };
  const auto chain = [&](OpContext& context, const Matrix& x, const Matrix& gate_up, bool beside) {
    const Matrix gate = gate_up.columns(0, kWidth);
    const Matrix up = gate_up.columns(kWidth, kWidth);
    norm(context, start.view(), gate_gamma.get(), x);
    for (std::int64_t link = 0; link < links; ++link) {
      if (beside) {
        Fork fork(context);
        norm(fork.context(), x, gate_gamma.get(), gate);
        norm(context, x, up_gamma.get(), up);
        fork.join();
      } else {
        norm(context, x, gate_gamma.get(), gate);
        norm(context, x, up_gamma.get(), up);
      }
      swiglu(context, {.gate_up = gate_up, .width = kWidth, .y = x, .rows = {rows, nullptr}});
    }
  };

  Runner runner;
  std::vector<std::vector<unsigned char>> results;
  for (const bool beside : {false, true}) {
    TestMatrix x(DType::kF32, rows, kWidth);
    TestMatrix gate_up(DType::kF32, rows, 2 * kWidth);
    runner.run([&](OpContext& context) { chain(context, x.view(), gate_up.view(), beside); }, {&x, &gate_up});
    results.push_back(x.snapshot());
  }
  EXPECT_TRUE(results[0] == results[1]);
}

}  // namespace
}  // namespace onerec
