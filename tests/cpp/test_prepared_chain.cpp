// prepared_chain: several prepared linears, which read what those before them wrote, against the same ones by
// themselves.
#include "ops/prepared_chain.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "support/device.h"
#include "support/runner.h"
#include "support/weights.h"

namespace onerec {
namespace {

using test::Random;
using test::Runner;
using test::TestArray;
using test::TestDevice;
using test::TestMatrix;
using test::TestOperand;
using test::TestWeight;

// As in prepared_chain.cuh.
constexpr std::size_t kMostLinks = 8;

struct Format {
  WeightFormat format;
  DType weight;
  DType values;
};

constexpr Format kFp8{WeightFormat::kFp8Channel, DType::kE4M3, DType::kBF16};
constexpr Format kBf16{WeightFormat::kDense, DType::kBF16, DType::kBF16};
constexpr Format kF32{WeightFormat::kDense, DType::kF32, DType::kF32};
constexpr Format kFormats[] = {kFp8, kBf16, kF32};

struct Case {
  Format format = kFp8;
  std::int64_t rows = 1;
  std::int64_t live = -1;  // -1: no count
  std::int64_t width = 64;
  std::int64_t hidden = 96;
  std::int64_t projected = 64;  // of q
  int layers = 1;
  std::int64_t padding = 0;
};

// The products of decoder layers: six links each, three of which add to h.
class Layers {
 public:
  Layers(Backend& backend, const Case& c)
      : case_(c),
        random_(17),
        gamma_(test::random_floats(random_, c.width)),
        count_({static_cast<std::int32_t>(c.live)}),
        h_(test::random_matrix(random_, c.format.values, c.rows, c.width, 2.0f, c.padding)),
        attended_(test::random_matrix(random_, c.format.values, c.rows, c.width, 1.0f, c.padding)),
        qkv_(c.format.values, c.rows, 3 * c.width, c.padding),
        gate_up_(c.format.values, c.rows, 2 * c.hidden, c.padding),
        q_(c.format.values, c.rows, c.projected, c.padding),
        dense_(c.format.values, c.rows, std::max(c.width, c.hidden)),
        coded_(ScaleKind::kPerRow, c.rows, std::max(c.width, c.hidden)) {
    for (int layer = 0; layer < c.layers; ++layer) {
      const Matrix values = qkv_.view().columns(2 * c.width, c.width);
      add(backend, Maker::kCopy, attended_.view(), c.width, h_.view(), true);
      add(backend, Maker::kNorm, h_.view(), c.width, qkv_.view(), false);
      add(backend, Maker::kCopy, values, c.width, h_.view(), true);
      add(backend, Maker::kNorm, h_.view(), c.width, gate_up_.view(), false);
      add(backend, Maker::kSwiglu, gate_up_.view(), c.hidden, h_.view(), true);
      add(backend, Maker::kNorm, h_.view(), c.width, q_.view(), false);
    }
  }

  const std::vector<PreparedLinearParams>& links() const { return links_; }
  std::vector<test::GuardedBuffer*> outputs() { return {&h_, &qkv_, &gate_up_, &q_}; }

 private:
  enum class Maker { kNorm, kSwiglu, kCopy };

  bool coded() const { return case_.format.format == WeightFormat::kFp8Channel; }

  void add(Backend& backend, Maker maker, const Matrix& input, std::int64_t inputs, const Matrix& y, bool residual) {
    weights_.emplace_back(backend, random_, case_.format.format, case_.format.weight, 1, y.cols, inputs);
    biases_.push_back(test::random_floats(random_, y.cols));
    const Extent rows{case_.rows, case_.live < 0 ? nullptr : count_.get()};
    Matrix values = dense_.view();
    values.cols = inputs;
    Operand codes = coded_.view();
    codes.values.cols = inputs;
    const bool ready = maker == Maker::kCopy && !coded();
    LinearParams product{.x = coded() ? codes : Operand{.values = values},
                         .weight = weights_.back().packed(),
                         .bias = biases_.back().get(),
                         .residual = residual ? ConstMatrix(y) : ConstMatrix{},
                         .y = y,
                         .rows = rows};
    if (!coded()) codes = {};
    if (coded()) values = {};
    if (ready) {
      product.x = {.values = input};
      links_.push_back({.input = ReadyInput{}, .product = product});
    } else if (maker == Maker::kNorm) {
      links_.push_back({.input = RmsNormParams{.x = input,
                                               .gamma = gamma_.get(),
                                               .width = inputs,
                                               .eps = 1e-5f,
                                               .y = values,
                                               .quantized = codes,
                                               .rows = rows},
                        .product = product});
    } else if (maker == Maker::kSwiglu) {
      links_.push_back(
          {.input = SwigluParams{.gate_up = input, .width = inputs, .y = values, .quantized = codes, .rows = rows},
           .product = product});
    } else {
      links_.push_back({.input = QuantizeParams{.x = input, .quantized = codes, .rows = rows}, .product = product});
    }
  }

  Case case_;
  Random random_;
  TestArray<float> gamma_;
  TestArray<std::int32_t> count_;
  TestMatrix h_;
  TestMatrix attended_;
  TestMatrix qkv_;
  TestMatrix gate_up_;
  TestMatrix q_;
  TestMatrix dense_;
  TestOperand coded_;
  std::vector<TestWeight> weights_;
  std::vector<TestArray<float>> biases_;
  std::vector<PreparedLinearParams> links_;
};

using Contents = std::vector<std::vector<unsigned char>>;

Contents contents_of(const std::vector<test::GuardedBuffer*>& buffers) {
  Contents contents;
  for (const test::GuardedBuffer* buffer : buffers) contents.push_back(buffer->snapshot());
  return contents;
}

void restore(const std::vector<test::GuardedBuffer*>& buffers, const Contents& contents) {
  for (std::size_t i = 0; i < buffers.size(); ++i) buffers[i]->restore(contents[i]);
}

void issue_one_by_one(OpContext& context, const std::vector<PreparedLinearParams>& links) {
  for (const PreparedLinearParams& link : links) prepared_linear(context, link);
}

void check(const Case& c) {
  SCOPED_TRACE(concat(c.rows, " (", c.live, " live) x ", c.width, ", ", c.hidden, ", ", c.projected, " ",
                      name_of(c.format.weight), ", ", c.layers, " layers"));
  Runner runner;
  Layers layers(runner.backend(), c);
  const std::vector<test::GuardedBuffer*> outputs = layers.outputs();
  const Contents before = contents_of(outputs);
  runner.run([&](OpContext& context) { prepared_chain(context, layers.links()); }, outputs);
  const Contents chained = contents_of(outputs);
  restore(outputs, before);
  runner.run_once([&](OpContext& context) { issue_one_by_one(context, layers.links()); });
  EXPECT_TRUE(chained == contents_of(outputs)) << "a chain and its links differ";
  EXPECT_EQ(chained == before, c.live == 0);
}

class PreparedChain : public testing::TestWithParam<Format> {};

TEST_P(PreparedChain, IsItsLinks) {
  check({.format = GetParam()});
  check({.format = GetParam(), .width = 640, .hidden = 1280, .projected = 320});
  check({.format = GetParam(), .width = 1792, .hidden = test::at_most_on_simt(7168, 512), .projected = 96});
}

TEST_P(PreparedChain, SeveralRows) {
  for (const std::int64_t rows : {2, 3, 4}) check({.format = GetParam(), .rows = rows, .width = 80, .hidden = 64});
  for (const std::int64_t live : {0, 1, 3, 4}) check({.format = GetParam(), .rows = 4, .live = live, .padding = 8});
  for (const std::int64_t live : {0, 1}) check({.format = GetParam(), .live = live});
}

TEST_P(PreparedChain, OutputsThatAreNotShared) {
  check({.format = GetParam(), .projected = 1});
  check({.format = GetParam(), .projected = 33, .padding = 8});
  check({.format = GetParam(), .rows = 2, .width = 48, .hidden = 16, .projected = 131});
}

TEST_P(PreparedChain, MoreLinksThanOneKernelTakes) {
  check({.format = GetParam(), .layers = 2});
  check({.format = GetParam(), .rows = 2, .layers = 5});
}

INSTANTIATE_TEST_SUITE_P(Formats, PreparedChain, testing::ValuesIn(kFormats));

TEST(PreparedChainKernel, BlocksMeetAgainAndAgain) {
  const auto rounds = static_cast<int>(test::at_most_on_simt(500, 12));
  Runner runner;
  Layers layers(runner.backend(), {.width = 128, .hidden = 256, .projected = 64, .layers = 2});
  const std::vector<test::GuardedBuffer*> outputs = layers.outputs();
  const Contents before = contents_of(outputs);
  const auto repeat = [&](auto issue) {
    restore(outputs, before);
    runner.run_once([&](OpContext& context) {
      for (int round = 0; round < rounds; ++round) issue(context);
    });
    return contents_of(outputs);
  };
  const Contents want = repeat([&](OpContext& context) { issue_one_by_one(context, layers.links()); });
  EXPECT_TRUE(want == repeat([&](OpContext& context) { prepared_chain(context, layers.links()); }));
}

TEST(PreparedChainKernel, StreamsDoNotDisturbEachOther) {
  const auto rounds = static_cast<int>(test::at_most_on_simt(200, 3));
  Runner runner;
  const std::unique_ptr<Stream> other = runner.backend().device().make_stream();
  const Case one{.width = 640, .hidden = 1280, .projected = 320};
  const Case two{.format = kBf16, .rows = 2, .width = 256, .hidden = 512, .projected = 64, .layers = 2};
  Layers first(runner.backend(), one);
  Layers second(runner.backend(), two);
  test::GuardedBuffer scratch(std::size_t{1} << 20);
  const auto context_beside = [&](const OpContext& context) {
    return OpContext{.backend = context.backend,
                     .stream = *other,
                     .workspace = {scratch.data(), scratch.bytes()},
                     .measuring = context.measuring};
  };
  const auto run = [&](auto issue) {
    const Contents before_first = contents_of(first.outputs());
    const Contents before_second = contents_of(second.outputs());
    runner.run_once([&](OpContext& context) {
      OpContext beside = context_beside(context);
      for (int round = 0; round < rounds; ++round) {
        issue(context, first.links());
        issue(beside, second.links());
      }
      other->synchronize();
    });
    Contents contents = contents_of(first.outputs());
    for (const auto& bytes : contents_of(second.outputs())) contents.push_back(bytes);
    restore(first.outputs(), before_first);
    restore(second.outputs(), before_second);
    return contents;
  };
  const Contents want = run([](OpContext& context, const auto& links) { issue_one_by_one(context, links); });
  EXPECT_TRUE(want == run([](OpContext& context, const auto& links) { prepared_chain(context, links); }));
}

TEST(PreparedChainKernel, GpusTakeFewRowsOfOneKind) {
  Runner runner;
  const bool can = test::test_device() != TestDevice::kCpu;
  const auto fuses = [&](const std::vector<PreparedLinearParams>& links) {
    return runner.backend().fuses_prepared_chain(links);
  };
  for (const Format& format : {kFp8, kBf16}) {
    EXPECT_EQ(fuses(Layers(runner.backend(), {.format = format}).links()), can);
    const Layers several(runner.backend(), {.format = format, .rows = 4});
    EXPECT_EQ(fuses({several.links()[3], several.links()[4]}), can);
    EXPECT_FALSE(fuses(Layers(runner.backend(), {.format = format, .rows = 5}).links()));
    EXPECT_FALSE(fuses(Layers(runner.backend(), {.format = format, .layers = 2}).links()));
  }
  EXPECT_FALSE(fuses(Layers(runner.backend(), {.format = kF32}).links()));
  const Layers coded(runner.backend(), {});
  const Layers dense(runner.backend(), {.format = kBf16});
  EXPECT_FALSE(fuses({coded.links()[0], dense.links()[0]}));
  const Layers counted(runner.backend(), {.live = 1});
  EXPECT_FALSE(fuses({coded.links()[0], counted.links()[0]}));
  Layers many(runner.backend(), {.layers = 2});
  std::vector<PreparedLinearParams> most(many.links().begin(), many.links().begin() + kMostLinks);
  EXPECT_EQ(fuses(most), can);
}

TEST(PreparedChainContract, RefusesALinkThatDoesNotFit) {
  Runner runner;
  const Layers layers(runner.backend(), {});
  std::vector<PreparedLinearParams> links = layers.links();
  std::get<RmsNormParams>(links[3].input).gamma = nullptr;
  const auto refusal = [&] { return runner.refusal([&](OpContext& context) { prepared_chain(context, links); }); };
  EXPECT_NE(refusal().find("gamma"), std::string::npos) << refusal();
}

TEST(PreparedChainContract, OfNothingDoesNothing) {
  Runner runner;
  runner.run_once([&](OpContext& context) { prepared_chain(context, {}); });
}

}  // namespace
}  // namespace onerec
