// The engine core on a tiny model: recorded against direct, poisoned memory, limits, and what it refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "backends/cpu/cpu_backend.h"
#include "backends/registry.h"
#include "core/error.h"
#include "engine/generation_engine.h"
#include "model/onerec_v2.h"
#include "support/oracle.h"

namespace onerec {
namespace {

OneRecV2Config tiny_config(bool moe) {
  OneRecV2Config config;
  config.codebook_sizes = {7, 5, 6};
  config.hidden_size = 32;
  config.num_hidden_layers = 3;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 1;
  config.head_dim = 16;
  config.intermediate_size = 48;
  config.num_context_kv_layers = 2;
  config.context_kv_split = 2;
  config.num_context_kv_heads = 1;
  config.attention_scale = 0.25f;
  config.qk_norm = true;
  config.attention_bias = true;
  config.learned_positions = true;
  config.embed_dim = 9;
  if (moe) {
    config.n_routed_experts = 5;
    config.n_shared_experts = 1;
    config.num_experts_per_tok = 2;
    config.moe_intermediate_size = 16;
    config.first_k_dense_replace = 1;
  }
  PathwayConfig history{.name = "history", .items = true, .max_tokens = 6, .positions = true};
  history.fields = {{.name = "action", .categorical = true, .num_embeddings = 3, .width = 4},
                    {.name = "age", .width = 2}};
  config.pathways = {history};
  return config;
}

std::unique_ptr<GenerationEngine> tiny_engine(std::unique_ptr<Backend> backend, const std::string& precision, bool moe,
                                              std::size_t memory_limit = 0) {
  auto model = std::make_unique<OneRecV2>(tiny_config(moe), Precision::parse(precision, "block"), *backend);
  auto engine = std::make_unique<GenerationEngine>(
      std::move(backend), std::move(model),
      EngineOptions{.limits = {.max_batch = 8, .max_rows = 256, .max_context_tokens = 64, .max_excluded = 64},
                    .memory_limit = memory_limit});
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  for (const auto& spec : engine->weights().specs()) {
    std::vector<float> values(static_cast<std::size_t>(std::max<std::int64_t>(spec.rows, 1) * spec.cols));
    for (auto& value : values) value = normal(random) + (spec.kind == TensorSpec::Kind::kVector ? 1.0f : 0.0f);
    engine->set_tensor(spec.name, {.dtype = TensorDType::kF32, .values = values.data()});
  }
  engine->finish_loading();
  return engine;
}

std::unique_ptr<GenerationEngine> tiny_engine(const std::string& precision, bool moe, std::size_t memory_limit = 0,
                                              int threads = 2) {
  return tiny_engine(test::make_test_backend(threads), precision, moe, memory_limit);
}

// `size` requests with i % 4 context tokens and widths that differ; every third is unconstrained.
struct Requests {
  explicit Requests(std::int32_t size, std::uint32_t seed = 1) {
    std::mt19937 random(seed);
    const auto below = [&](std::uint32_t limit) { return static_cast<std::int32_t>(random() % limit); };
    for (std::int32_t b = 0; b < size; ++b) {
      for (std::int32_t i = 0; i < b % 4; ++i) {
        codes.insert(codes.end(), {below(7), below(5), below(6)});
        positions.push_back(i);
        rows.push_back(static_cast<std::int32_t>(rows.size()));
        categorical.push_back(below(3));
        dense.insert(dense.end(), {0.1f * static_cast<float>(i), -0.2f});
      }
      context_offsets.push_back(static_cast<std::int32_t>(rows.size()));
      widths.insert(widths.end(), {2 + below(6), 1 + below(9), 1 + below(12)});
      constrained.push_back(b % 3 != 2);
      if (b % 2 == 0) excluded.insert(excluded.end(), {3, 11});
      excluded_offsets.push_back(static_cast<std::int32_t>(excluded.size()));
    }
  }
  Batch batch() const {
    return {.size = static_cast<std::int64_t>(constrained.size()),
            .pathways = {{.tokens = static_cast<std::int64_t>(rows.size()),
                          .codes = codes.data(),
                          .positions = positions.data(),
                          .rows = rows.data(),
                          .categorical = categorical.data(),
                          .dense = dense.data()}},
            .context_offsets = context_offsets.data(),
            .widths = widths.data(),
            .constrained = constrained.data(),
            .excluded = excluded.data(),
            .excluded_offsets = excluded_offsets.data()};
  }
  std::vector<std::int32_t> codes, positions, rows, categorical, widths, excluded;
  std::vector<std::int32_t> context_offsets = {0}, excluded_offsets = {0};
  std::vector<float> dense;
  std::vector<std::uint8_t> constrained;
};

void set_catalogue(GenerationEngine& engine) {
  std::vector<std::int32_t> codes;
  std::mt19937 random(5);
  for (int i = 0; i < 40; ++i) {
    codes.insert(codes.end(), {static_cast<std::int32_t>(random() % 7), static_cast<std::int32_t>(random() % 5),
                               static_cast<std::int32_t>(random() % 6)});
  }
  engine.set_catalogue(codes.data(), 40);
}

void expect_same(const BatchResult& a, const BatchResult& b) {
  EXPECT_EQ(a.offsets, b.offsets);
  EXPECT_EQ(a.scores, b.scores);
  EXPECT_EQ(a.codes, b.codes);
  EXPECT_EQ(a.leaves, b.leaves);
  EXPECT_EQ(a.status, b.status);
}

// Wants the rows of an expert aligned as a GPU does, few rows more than many.
class AligningBackend final : public cpu::CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  std::int64_t grouped_alignment(std::int64_t rows, std::int64_t, std::int64_t) const override {
    return rows < 8 ? 128 : 16;
  }
};

// Takes a product and the norm behind it for one op, as a GPU does, and says that scales overflow if told to. Its norms
// are not left pending in truth.
class CarryingBackend final : public cpu::CpuBackend {
 public:
  CarryingBackend(int threads, bool overflows, int& calls)
      : CpuBackend(threads), workspace_(device().allocate(kWorkspace)), overflows_(overflows), calls_(calls) {}
  bool reads_pending_norm(const LinearWeight&, std::int64_t) const override { return true; }
  bool fuses_linear_norm(const LinearNormParams& params) const override {
    return params.norm.quantized.pending.squares != nullptr && params.previous.pending.squares != nullptr;
  }
  void linear_norm(Stream& stream, const LinearNormParams& params) override {
    ++calls_;
    // Three norms are in use at a time: that before, this one, and the one behind it.
    EXPECT_NE(params.norm.quantized.scales, params.previous.scales);
    EXPECT_NE(params.norm.quantized.pending.squares, params.previous.pending.squares);
    EXPECT_EQ(params.norm.quantized.pending.squares, params.previous.pending.next_squares);
    EXPECT_EQ(params.product.residual.data, params.norm.x.data);
    linear(stream, params.product, {workspace_->data(), kWorkspace});
    rms_norm(stream, params.norm);
    if (overflows_) stream.fill(params.overflowed, 1, sizeof(std::int32_t));
  }

 private:
  static constexpr std::size_t kWorkspace = std::size_t{1} << 20;
  std::unique_ptr<Buffer> workspace_;
  bool overflows_;
  int& calls_;
};

// Notes which static scales ops are asked to make codes by, and does without.
class ScaleNotingBackend final : public cpu::CpuBackend {
 public:
  ScaleNotingBackend(bool takes, std::vector<float>& attention, std::vector<float>& swiglu)
      : CpuBackend(2), takes_(takes), attention_(attention), swiglu_(swiglu) {}
  bool takes_static_scales() const override { return takes_; }
  bool fuses_cross_attention_codes(const CrossAttentionParams& params) const override {
    attention_.push_back(params.quantized.static_scale);
    return false;
  }
  bool fuses_linear_swiglu(const LinearSwigluParams& params) const override {
    swiglu_.push_back(params.quantized.static_scale);
    return false;
  }

 private:
  bool takes_;
  std::vector<float>& attention_;
  std::vector<float>& swiglu_;
};

class EveryPrecision : public testing::TestWithParam<std::tuple<std::string, bool>> {};

TEST_P(EveryPrecision, RecordedDirectPoisonedAndRepeatedRunsAgreeToTheBit) {
  const auto [precision, moe] = GetParam();
  const auto engine = tiny_engine(precision, moe);
  set_catalogue(*engine);
  for (const std::int32_t size : {1, 3, 7}) {
    if (size == 7 && test::test_device() == test::TestDevice::kSimt) break;  // slow
    const Requests requests(size);
    BatchResult recorded, direct, poisoned, zeroed;
    engine->run(requests.batch(), recorded);
    engine->run_directly(requests.batch(), direct, nullptr);
    expect_same(recorded, direct);
    engine->poison(0xff);
    engine->run(requests.batch(), poisoned);
    expect_same(recorded, poisoned);
    engine->poison(0);
    engine->run(requests.batch(), zeroed);
    expect_same(recorded, zeroed);
    for (std::size_t b = 0; b < static_cast<std::size_t>(size); ++b) {
      EXPECT_EQ(recorded.status[b], 0);
      const auto begin = recorded.scores.begin() + recorded.offsets[b];
      const auto end = recorded.scores.begin() + recorded.offsets[b + 1];
      EXPECT_TRUE(std::is_sorted(begin, end, std::greater<>()));
      EXPECT_TRUE(std::isfinite(*begin));
    }
  }
}

TEST_P(EveryPrecision, ARequestsAnswerDoesNotDependOnItsBatchOrTheThreadCount) {
  if (!test::rows_are_independent()) GTEST_SKIP() << "the bits of a product depend on its rows here";
  const auto [precision, moe] = GetParam();
  const auto engine = tiny_engine(precision, moe);
  set_catalogue(*engine);
  const Requests together(7);
  BatchResult all;
  engine->run(together.batch(), all);
  if (test::test_device() == test::TestDevice::kCpu) {
    const auto single_thread = tiny_engine(precision, moe, 0, 1);
    set_catalogue(*single_thread);
    BatchResult all_single;
    single_thread->run(together.batch(), all_single);
    expect_same(all, all_single);
  }

  // Request 5 alone.
  const Batch whole = together.batch();
  Batch alone = whole;
  alone.size = 1;
  const std::int32_t first = together.context_offsets[5];
  const std::int32_t tokens = together.context_offsets[6] - first;
  const std::vector<std::int32_t> context_offsets = {0, tokens};
  const std::vector<std::int32_t> excluded_offsets = {0, together.excluded_offsets[6] - together.excluded_offsets[5]};
  std::vector<std::int32_t> rows;
  for (std::int32_t i = 0; i < tokens; ++i) rows.push_back(i);
  alone.pathways[0] = {.tokens = tokens,
                       .codes = whole.pathways[0].codes + 3 * first,
                       .positions = whole.pathways[0].positions + first,
                       .rows = rows.data(),
                       .categorical = whole.pathways[0].categorical + first,
                       .dense = whole.pathways[0].dense + 2 * first};
  alone.context_offsets = context_offsets.data();
  alone.excluded_offsets = excluded_offsets.data();
  alone.excluded = whole.excluded + together.excluded_offsets[5];
  alone.widths = whole.widths + 15;
  alone.constrained = whole.constrained + 5;
  BatchResult one;
  engine->run(alone, one);
  const auto begin = static_cast<std::size_t>(all.offsets[5]);
  const auto end = static_cast<std::size_t>(all.offsets[6]);
  EXPECT_EQ(one.scores, std::vector<float>(all.scores.begin() + all.offsets[5], all.scores.begin() + all.offsets[6]));
  EXPECT_EQ(one.codes, std::vector<std::int32_t>(all.codes.begin() + static_cast<std::ptrdiff_t>(3 * begin),
                                                 all.codes.begin() + static_cast<std::ptrdiff_t>(3 * end)));
}

TEST_P(EveryPrecision, ScoringASearchsResultsGivesTheirScores) {
  const auto [precision, moe] = GetParam();
  const auto engine = tiny_engine(precision, moe);
  set_catalogue(*engine);
  Requests requests(4);
  std::fill(requests.widths.begin(), requests.widths.end(), 4);
  BatchResult found, scored;
  engine->run(requests.batch(), found);
  Batch forced = requests.batch();
  forced.forced = found.codes.data();
  engine->run(forced, scored);
  for (std::size_t i = 0; i < found.scores.size(); ++i) {
    if (std::isfinite(found.scores[i])) {
      EXPECT_TRUE(test::is_score(scored.scores[i], found.scores[i])) << scored.scores[i] << ", " << found.scores[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(GenerationEngine, EveryPrecision,
                         testing::Combine(testing::Values("fp32", "bf16", "fp8"), testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) + (std::get<1>(info.param) ? "_moe" : "_dense");
                         });

TEST(GenerationEngine, APlanThatDoesNotFitFailsBeforeItStartsWithTheNumbers) {
  const auto unlimited = tiny_engine("fp32", false);
  const auto engine = tiny_engine("fp32", false, unlimited->memory_plan().weights + 64 * 1024);
  Requests requests(7);
  std::fill(requests.constrained.begin(), requests.constrained.end(), 0);
  std::fill(requests.excluded_offsets.begin(), requests.excluded_offsets.end(), 0);
  std::fill(requests.widths.begin(), requests.widths.end(), 30);
  BatchResult result;
  try {
    engine->run(requests.batch(), result);
    FAIL() << "ran";
  } catch (const PlanMemoryError& error) {
    EXPECT_NE(std::string(error.what()).find("self_kv"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("MiB are left"), std::string::npos) << error.what();
  }
  EXPECT_EQ(engine->memory_plan().arena, 0u);
}

TEST(GenerationEngine, PlanForSaysWhatARunWillTake) {
  const auto engine = tiny_engine("bf16", true);
  set_catalogue(*engine);
  const Requests requests(5);
  const MemoryPlan predicted = engine->plan_for(requests.batch());
  EXPECT_EQ(engine->memory_plan().arena, 0u);
  BatchResult result;
  engine->run(requests.batch(), result);
  const MemoryPlan actual = engine->memory_plan();
  EXPECT_EQ(predicted.total(), actual.total());
  std::size_t parts = 0;
  for (const auto& [purpose, bytes] : actual.arena_ledger) parts += bytes;
  EXPECT_EQ(parts, actual.arena);
}

TEST(GenerationEngine, RefusesToRunBeforeItsWeightsAreLoaded) {
  auto backend = test::make_test_backend(1);
  auto model = std::make_unique<OneRecV2>(tiny_config(false), Precision{}, *backend);
  GenerationEngine engine(std::move(backend), std::move(model), {});
  BatchResult result;
  EXPECT_THROW(engine.run(Requests(1).batch(), result), StateError);
  EXPECT_THROW(engine.finish_loading(), ArgumentError);
}

TEST(GenerationEngine, AWeightThatOverflowsIsReportedPerRequest) {
  const auto engine = tiny_engine("fp32", false);
  auto backend = test::make_test_backend(1);
  auto model = std::make_unique<OneRecV2>(tiny_config(false), Precision{}, *backend);
  GenerationEngine broken(std::move(backend), std::move(model),
                          {.limits = {.max_batch = 8, .max_rows = 256, .max_context_tokens = 64, .max_excluded = 64}});
  for (const auto& spec : broken.weights().specs()) {
    const bool damaged = spec.name == "lm_heads.1.weight";
    const std::vector<float> values(static_cast<std::size_t>(std::max<std::int64_t>(spec.rows, 1) * spec.cols),
                                    damaged ? std::numeric_limits<float>::quiet_NaN() : 0.01f);
    broken.set_tensor(spec.name, {.dtype = TensorDType::kF32, .values = values.data()});
  }
  broken.finish_loading();
  Requests requests(2);
  std::fill(requests.constrained.begin(), requests.constrained.end(), 0);
  std::fill(requests.excluded_offsets.begin(), requests.excluded_offsets.end(), 0);
  BatchResult result;
  broken.run(requests.batch(), result);
  EXPECT_EQ(result.status, (std::vector<std::int32_t>{1, 1}));
}

TEST(GenerationEngine, TheAlignmentOfExpertsChangesNothing) {
  ONEREC_CPU_ONLY();
  if (!test::rows_are_independent()) GTEST_SKIP() << "this library's bits depend on the rows of a product";
  for (const char* precision : {"fp32", "bf16", "fp8"}) {
    const auto plain = tiny_engine(precision, true);
    const auto aligned = tiny_engine(std::make_unique<AligningBackend>(2), precision, true);
    for (const auto& engine : {plain.get(), aligned.get()}) {
      set_catalogue(*engine);
      engine->poison(0xff);
    }
    for (const std::int32_t size : {1, 7}) {
      const Requests requests(size);
      BatchResult want, got;
      plain->run(requests.batch(), want);
      aligned->run(requests.batch(), got);
      expect_same(want, got);
    }
  }
}

// Norms that come with products change nothing but who makes them; where a scale overflows, they are done without.
TEST(GenerationEngine, ASearchWhoseScalesOverflowIsRepeated) {
  if (test::test_device() != test::TestDevice::kCpu) GTEST_SKIP() << "needs a backend of its own";
  const Requests requests(6);
  for (const bool moe : {false, true}) {
    BatchResult plain;
    const auto engine = tiny_engine("fp8", moe);
    set_catalogue(*engine);
    engine->run(requests.batch(), plain);
    EXPECT_FALSE(plain.repeated);
    for (const bool overflows : {false, true}) {
      int calls = 0;
      const auto carrying = tiny_engine(std::make_unique<CarryingBackend>(2, overflows, calls), "fp8", moe);
      set_catalogue(*carrying);
      for (const bool directly : {false, true}) {
        BatchResult result;
        directly ? carrying->run_directly(requests.batch(), result, nullptr) : carrying->run(requests.batch(), result);
        expect_same(result, plain);
        EXPECT_EQ(result.repeated, overflows);
      }
      // Per step, of layers 1 and 2: dense ones have three products that add to the stream, of which the last one of
      // all has a norm that is not coded; mixtures one whose norm has a single reader.
      const int steps = 3 * 2;  // recorded, then run directly
      EXPECT_EQ(calls, moe ? steps * 2 : steps * 5);
    }
  }
}

// The weights give every layer's attention a static scale, and its SwiGLU where the backend has a use for one. Answers
// are those of a backend that has not.
TEST(GenerationEngine, CodesComeWithStaticScales) {
  const auto power_of_two = [](float scale) {
    int exponent = 0;
    return scale > 0.0f && std::frexp(scale, &exponent) == 0.5f;
  };
  const Requests requests(3);
  std::vector<float> attention, swiglu, unused, none;
  BatchResult with, without;
  for (const bool takes : {false, true}) {
    const auto engine = tiny_engine(takes ? std::make_unique<ScaleNotingBackend>(true, attention, swiglu)
                                          : std::make_unique<ScaleNotingBackend>(false, unused, none),
                                    "fp8", false);
    set_catalogue(*engine);
    engine->run_directly(requests.batch(), takes ? with : without, nullptr);
  }
  expect_same(with, without);
  ASSERT_FALSE(attention.empty());
  ASSERT_FALSE(swiglu.empty());
  EXPECT_TRUE(std::all_of(attention.begin(), attention.end(), power_of_two));
  EXPECT_TRUE(std::all_of(swiglu.begin(), swiglu.end(), power_of_two));
  EXPECT_EQ(unused, attention);
  EXPECT_EQ(none, std::vector<float>(swiglu.size(), 0.0f));
}

TEST(Registry, SaysWhyThereIsNoCuda) {
  if (make_cuda_backend() != nullptr) GTEST_SKIP() << "this build has CUDA";
  EXPECT_FALSE(why_no_cuda().empty());
  EXPECT_THROW(make_backend("cuda", 0), StateError);
  EXPECT_THROW(make_backend("tpu", 0), ArgumentError);
}

}  // namespace
}  // namespace onerec
