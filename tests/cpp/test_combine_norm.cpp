// combine_norm: h as moe_combine makes it, and the norm of that h, in one kernel or in two.
#include "ops/combine_norm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/norm_codes.h"
#include "support/oracle.h"
#include "support/runner.h"
#include "support/tensors.h"

namespace onerec::test {
namespace {

// What the norm is asked for, in the combinations of the model: the values that a router or a head reads, and codes.
struct Outputs {
  bool values = false;
  ScaleKind codes = ScaleKind::kNone;
  bool blocks_too = false;
};

constexpr Outputs kOutputs[] = {{.values = true},
                                {.codes = ScaleKind::kPerRow},
                                {.values = true, .codes = ScaleKind::kPerBlock},
                                {.values = true, .codes = ScaleKind::kPerRow, .blocks_too = true}};

struct Case {
  DType dtype = DType::kBF16;
  std::int64_t rows = 5;
  std::int64_t live = -1;  // -1: no count
  std::int64_t top_k = 3;
  std::int64_t width = 128;
  bool shared = true;
  std::int64_t padding = 8;
  Outputs outputs = {.values = true};
};

class Problem {
 public:
  explicit Problem(const Case& c)
      : case_(c),
        random_(51),
        experts_(random_matrix(random_, c.dtype, c.rows * c.top_k, c.width, 1.0f, c.padding)),
        shared_(random_matrix(random_, c.dtype, c.rows, c.width, 1.0f, c.padding)),
        gamma_(random_floats(random_, c.width)),
        weights_(random_floats(random_, c.rows * c.top_k)),
        slots_(c.rows * c.top_k),
        count_({static_cast<std::int32_t>(c.live)}),
        h_(random_matrix(random_, c.dtype, c.rows, c.width, 1.0f, c.padding)),
        y_(c.dtype, c.rows, c.width, c.padding),
        codes_(c.outputs.codes == ScaleKind::kNone ? ScaleKind::kPerRow : c.outputs.codes, c.rows, c.width, c.padding),
        blocks_(ScaleKind::kPerBlock, c.rows, c.width, c.padding) {
    std::iota(slots_.begin(), slots_.end(), 0);
    std::shuffle(slots_.begin(), slots_.end(), random_);
  }

  CombineNormParams params() const {
    const Extent rows{case_.rows, case_.live < 0 ? nullptr : count_.get()};
    return {.combine = {.expert_out = experts_.view(),
                        .slots = slots_.get(),
                        .weights = weights_.get(),
                        .top_k = case_.top_k,
                        .shared = case_.shared ? ConstMatrix(shared_.view()) : ConstMatrix(),
                        .h = h_.view(),
                        .rows = rows},
            .norm = {.x = h_.view(),
                     .gamma = gamma_.get(),
                     .width = case_.width,
                     .eps = 1e-5f,
                     .gamma_magnitude = largest_magnitude(gamma_),
                     .y = case_.outputs.values ? y_.view() : Matrix{},
                     .quantized = case_.outputs.codes == ScaleKind::kNone ? Operand{} : codes_.view(),
                     .quantized_blocks = case_.outputs.blocks_too ? blocks_.view() : Operand{},
                     .rows = rows}};
  }

  std::vector<GuardedBuffer*> written() {
    return {&h_, &y_, &codes_.codes, &codes_.scales, &blocks_.codes, &blocks_.scales};
  }
  TestMatrix& h() { return h_; }

  // The norm's outputs against float64 on the h that is there; nothing behind the live rows.
  void check_norm() const {
    for (std::int64_t r = 0; r < case_.rows; ++r) {
      if (case_.live >= 0 && r >= case_.live) {
        for (const TestMatrix* m : {&y_, &codes_.codes, &blocks_.codes}) {
          for (const unsigned char byte : m->row_bytes(r)) ASSERT_EQ(byte, kPoison) << "row " << r << " is not live";
        }
        continue;
      }
      double sum = 0.0;
      for (std::int64_t c = 0; c < case_.width; ++c) sum += static_cast<double>(h_.get(r, c)) * h_.get(r, c);
      const double rstd = 1.0 / std::sqrt(sum / static_cast<double>(case_.width) + 1e-5);
      std::vector<double> want(static_cast<std::size_t>(case_.width));
      for (std::int64_t c = 0; c < case_.width; ++c) {
        want[static_cast<std::size_t>(c)] = h_.get(r, c) * rstd * gamma_[c];
      }
      if (case_.outputs.values) {
        for (std::int64_t c = 0; c < case_.width; ++c) {
          const double value = want[static_cast<std::size_t>(c)];
          expect_close(case_.dtype, y_.get(r, c), value, std::ldexp(std::abs(value), -20), "y", r, c);
        }
      }
      if (case_.outputs.codes == ScaleKind::kPerRow) check_norm_codes(h_, gamma_, 1e-5f, codes_, r);
      if (case_.outputs.codes == ScaleKind::kPerBlock) check_blocks(codes_, r, want);
      if (case_.outputs.blocks_too) check_blocks(blocks_, r, want);
      if (testing::Test::HasFatalFailure()) return;
    }
  }

 private:
  void check_blocks(const TestOperand& coded, std::int64_t r, const std::vector<double>& want) const {
    for (std::int64_t begin = 0; begin < case_.width; begin += kScaleBlock) {
      const std::int64_t end = std::min(begin + kScaleBlock, case_.width);
      double largest = 0.0;
      for (std::int64_t c = begin; c < end; ++c)
        largest = std::max(largest, std::abs(want[static_cast<std::size_t>(c)]));
      const double scale = std::max(largest / 448.0, 1e-12);
      ASSERT_NEAR(coded.scale(r, begin), scale, 4e-6 * scale) << r;
      for (std::int64_t c = begin; c < end; ++c) {
        const double value = want[static_cast<std::size_t>(c)] / scale;
        expect_close(DType::kE4M3, coded.codes.get(r, c), value, std::ldexp(std::abs(value), -18), "a code", r, c);
      }
    }
  }

  Case case_;
  Random random_;
  TestMatrix experts_, shared_;
  TestArray<float> gamma_, weights_;
  TestArray<std::int32_t> slots_, count_;
  TestMatrix h_, y_;
  TestOperand codes_, blocks_;
};

void check(const Case& c) {
  SCOPED_TRACE(concat(c.rows, " (", c.live, " live) x ", c.width, ", top ", c.top_k, c.shared ? " + shared" : "", " ",
                      name_of(c.dtype), ", padding ", c.padding));
  Runner runner;
  Problem problem(c);
  const std::vector<unsigned char> before = problem.h().snapshot();
  runner.run([&](OpContext& context) { combine_norm(context, problem.params()); }, problem.written());
  problem.check_norm();
  if (testing::Test::HasFatalFailure()) return;
  const std::vector<unsigned char> at_once = problem.h().snapshot();

  problem.h().restore(before);
  runner.run_once([&](OpContext& context) { moe_combine(context, problem.params().combine); });
  EXPECT_EQ(at_once, problem.h().snapshot()) << "h is not moe_combine's";
}

TEST(CombineNorm, MatchesItsParts) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Outputs& outputs : kOutputs) {
      for (const std::int64_t width : {8, 64, 200, 256, 640, 1408, 1792, 5000, 9000}) {
        check({.dtype = dtype, .width = width, .outputs = outputs});
        if (HasFatalFailure()) return;
      }
      for (const auto& [rows, live] : {std::pair{0, -1}, {1, -1}, {33, 30}, {9, 0}, {600, 512}}) {
        check({.dtype = dtype,
               .rows = at_most_on_simt(rows, 40),
               .live = at_most_on_simt(live, 36),
               .width = 256,
               .outputs = outputs});
        if (HasFatalFailure()) return;
      }
    }
    for (const std::int64_t top_k : {1, 2, 4, 6, 9}) {
      for (const bool shared : {false, true}) check({.dtype = dtype, .top_k = top_k, .width = 1408, .shared = shared});
    }
  }
}

// What a single kernel does not take: rows that start anywhere or are no whole vectors.
TEST(CombineNorm, AnyAlignment) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const Outputs& outputs : kOutputs) {
      check({.dtype = dtype, .width = 256, .padding = 3, .outputs = outputs});
      check({.dtype = dtype, .width = 131, .outputs = outputs});
    }
  }
}

TEST(CombineNorm, GpusTakeWholeVectors) {
  Runner runner;
  const auto fuses = [&](const Case& c) { return runner.backend().fuses_combine_norm(Problem(c).params()); };
  EXPECT_EQ(fuses({.width = 1408}), test_device() != TestDevice::kCpu);
  EXPECT_FALSE(fuses({.width = 131}));
  EXPECT_FALSE(fuses({.width = 256, .padding = 3}));
}

TEST(CombineNorm, RefusesANormOfSomethingElse) {
  Runner runner;
  const Problem problem(Case{});
  const auto refusal = [&](auto&& change) {
    CombineNormParams params = problem.params();
    change(params);
    return runner.refusal([&](OpContext& context) { combine_norm(context, params); });
  };
  EXPECT_EQ(refusal([](auto&) {}), "");
  EXPECT_NE(refusal([](auto& p) { p.norm.x = p.norm.y; }).find("a norm that does not read what is made"),
            std::string::npos);
  EXPECT_NE(refusal([](auto& p) { p.norm.rows.capacity = 4; }).find("want the same rows"), std::string::npos);
  EXPECT_NE(refusal([](auto& p) { p.norm.groups = 2; }).find("groups, want 1"), std::string::npos);
  EXPECT_NE(refusal([](auto& p) { p.norm.y.data = const_cast<void*>(p.combine.shared.data); }), "");
  EXPECT_NE(refusal([](auto& p) { p.norm.y = p.combine.h; }), "");
  EXPECT_NE(refusal([](auto& p) { p.norm.gamma = nullptr; }).find("gamma"), std::string::npos);
}

}  // namespace
}  // namespace onerec::test
