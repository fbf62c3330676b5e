// Times every kernel of the dense matrix product on shapes read from standard input, one per line: the types
// (fp8_bf16, bf16_bf16 or bf16_f32), outputs, inputs, rows. Prints a JSON object per kernel and shape:
// microseconds of one call (the median of replays of a CUDA graph whose calls read weights from memory, not from the
// cache; a shape's kernels take turns), and the largest difference from the first kernel's y, in its first and last
// rows, over that y's largest magnitude. Types fp8_swiglu: the product of gates and ups with SwiGLU and the
// quantisation of its result; the first kernel, -1, is what linear() and swiglu() take one after the other.
// fp8_swiglu_static: the same with a static scale.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_error.h"
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/gemm_select.h"
#include "backends/registry.h"
#include "core/bfloat16.h"
#include "core/float8.h"
#include "replay_timer.h"

namespace onerec::cuda {
namespace {

constexpr std::size_t kRotatedBytes = std::size_t{128} << 20;  // above the L2 cache
constexpr std::int64_t kMostPlainRows = 64;
constexpr std::int64_t kComparedRows = 32;

class Tuner {
 public:
  Tuner() : backend_(make_cuda_backend()), stream_(std::make_unique<CudaStream>()) {
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0), "count multiprocessors");
  }

  void tune(const std::string& types, std::int64_t outputs, std::int64_t inputs, std::int64_t rows) {
    const bool fp8 = types == "fp8_bf16";
    const bool wide = types == "bf16_f32";
    make_weights(fp8, outputs, inputs);
    const auto x = upload(random_values(fp8, rows * inputs));
    const auto scales = upload(std::vector<float>(static_cast<std::size_t>(rows), 0.01f));
    const std::size_t y_bytes = static_cast<std::size_t>(rows * outputs) * (wide ? 4 : 2);
    const auto y = backend_->device().allocate(y_bytes);
    LinearParams params{.x = {.values = {x->data(), fp8 ? DType::kE4M3 : DType::kBF16, rows, inputs, inputs},
                              .scale_kind = fp8 ? ScaleKind::kPerRow : ScaleKind::kNone,
                              .scales = fp8 ? static_cast<float*>(scales->data()) : nullptr,
                              .scale_stride = rows},
                        .y = {y->data(), wide ? DType::kF32 : DType::kBF16, rows, outputs, outputs},
                        .rows = {rows, nullptr}};
    const GemmTypes wanted = fp8 ? GemmTypes::kFp8ToBf16 : wide ? GemmTypes::kBf16ToF32 : GemmTypes::kBf16ToBf16;
    const int modelled = model_gemm({wanted, rows, outputs, inputs, multiprocessors_});
    std::vector<float> reference;
    std::vector<Measured> measured;
    for (int config = kPlainGemm; config < kGemmConfigCount; ++config) {
      const bool built = config == kPlainGemm
                             ? rows <= kMostPlainRows || modelled == kPlainGemm
                             : kGemmConfigs[config].types == wanted && takes_outputs(kGemmConfigs[config], outputs);
      if (!built) continue;
      params.weight = weights_.front().get();
      stream_->fill(y->data(), 0xff, y_bytes);
      linear_with(*stream_, params, config, multiprocessors_);
      const std::vector<float> result = ends(y->data(), rows, outputs, wide);
      if (reference.empty()) reference = result;
      record([&](const LinearWeight* weight) {
        params.weight = weight;
        linear_with(*stream_, params, config, multiprocessors_);
      });
      measured.push_back({config, gemm_name(config), difference(result, reference), config == modelled});
    }
    print(types.c_str(), outputs, inputs, rows, measured);
  }

  // `static_scale`: of the codes; 0: each row's largest value decides.
  void tune_swiglu(std::int64_t outputs, std::int64_t inputs, std::int64_t rows, float static_scale) {
    make_weights(true, outputs, inputs);
    const std::int64_t width = outputs / 2;
    const auto x = upload(random_values(true, rows * inputs));
    const auto scales = upload(std::vector<float>(static_cast<std::size_t>(rows), 0.001f));
    const auto gate_up = backend_->device().allocate(static_cast<std::size_t>(rows * outputs) * 2);
    const auto codes = backend_->device().allocate(static_cast<std::size_t>(rows * width));
    const auto code_scales = backend_->device().allocate(static_cast<std::size_t>(rows) * sizeof(float));
    const Operand quantized{.values = {codes->data(), DType::kE4M3, rows, width, width},
                            .scale_kind = ScaleKind::kPerRow,
                            .scales = static_cast<float*>(code_scales->data()),
                            .scale_stride = rows,
                            .static_scale = static_scale};
    LinearSwigluParams params{.x = {.values = {x->data(), DType::kE4M3, rows, inputs, inputs},
                                    .scale_kind = ScaleKind::kPerRow,
                                    .scales = static_cast<float*>(scales->data()),
                                    .scale_stride = rows},
                              .weight = weights_.front().get(),
                              .width = width,
                              .gate_up = {gate_up->data(), DType::kBF16, rows, outputs, outputs},
                              .quantized = quantized,
                              .rows = {rows, nullptr}};
    const Matrix hidden = hidden_in_gate_up(params);
    const auto progress = backend_->device().allocate(std::max<std::size_t>(1, swiglu_codes_gemm_workspace(params)));
    const GemmShape shape{GemmTypes::kFp8ToBf16, rows, outputs, inputs, multiprocessors_};
    const auto issue = [&](int config, const LinearWeight* weight) {
      params.weight = weight;
      if (config == kUnfused) {
        linear_with(*stream_, {.x = params.x, .weight = weight, .y = params.gate_up, .rows = params.rows},
                    select_gemm(shape), multiprocessors_);
        backend_->swiglu(*stream_,
                         {.gate_up = params.gate_up, .width = width, .quantized = quantized, .rows = params.rows});
      } else if (swiglu_static_codes_gemm_takes(params)) {
        swiglu_static_codes_gemm(*stream_, params, config, multiprocessors_);
      } else if (swiglu_codes_gemm_takes(params)) {
        swiglu_codes_gemm(*stream_, params, config, multiprocessors_, {progress->data(), progress->bytes()});
      } else {
        swiglu_gemm(*stream_, params, hidden, config, multiprocessors_);
        backend_->quantize(*stream_, {.x = hidden, .quantized = quantized, .rows = params.rows});
      }
    };
    // Codes may fall to their neighbours: what is compared is what they are of.
    const auto y = backend_->device().allocate(static_cast<std::size_t>(rows * width) * 2);
    const Matrix values{y->data(), DType::kBF16, rows, width, width};
    std::vector<float> reference;
    std::vector<Measured> measured;
    for (int config = kUnfused; config < kSwigluConfigCount; ++config) {
      stream_->fill(y->data(), 0xff, y->bytes());
      issue(config, weights_.front().get());
      if (config == kUnfused) {
        backend_->swiglu(*stream_, {.gate_up = params.gate_up, .width = width, .y = values, .rows = params.rows});
      } else {
        swiglu_gemm(*stream_, params, values, config, multiprocessors_);
      }
      const std::vector<float> result = ends(y->data(), rows, width, false);
      if (reference.empty()) reference = result;
      record([&](const LinearWeight* weight) { issue(config, weight); });
      measured.push_back({config, config == kUnfused ? "linear, swiglu" : swiglu_gemm_name(config),
                          difference(result, reference), config == select_swiglu_gemm(shape)});
    }
    print(static_scale > 0.0f ? "fp8_swiglu_static" : "fp8_swiglu", outputs, inputs, rows, measured);
  }

 private:
  static constexpr int kUnfused = -1;

  // A kernel whose calls timer_ holds.
  struct Measured {
    int config;
    std::string name;
    double off;  // difference()
    bool modelled;
  };

  void print(const char* types, std::int64_t outputs, std::int64_t inputs, std::int64_t rows,
             const std::vector<Measured>& measured) {
    const std::vector<double> us = timer_.microseconds();
    for (std::size_t i = 0; i < measured.size(); ++i) {
      const Measured& m = measured[i];
      std::printf(
          "{\"types\": \"%s\", \"outputs\": %lld, \"inputs\": %lld, \"rows\": %lld, \"config\": %d, \"name\": \"%s\", "
          "\"us\": %.3f, \"difference\": %.2e, \"modelled\": %s}\n",
          types, static_cast<long long>(outputs), static_cast<long long>(inputs), static_cast<long long>(rows),
          m.config, m.name.c_str(), us[i], m.off, m.modelled ? "true" : "false");
    }
    std::fflush(stdout);
  }

  void make_weights(bool fp8, std::int64_t outputs, std::int64_t inputs) {
    if (!weights_.empty() && weights_.front()->outputs == outputs && weights_.front()->inputs == inputs &&
        (weights_.front()->dtype == DType::kE4M3) == fp8) {
      return;
    }
    weights_.clear();
    const std::vector<unsigned char> values = random_values(fp8, outputs * inputs);
    const std::vector<float> scales(static_cast<std::size_t>(outputs), 0.01f);
    const LinearWeightSource source{.name = "tuned",
                                    .outputs = outputs,
                                    .inputs = inputs,
                                    .format = fp8 ? WeightFormat::kFp8Channel : WeightFormat::kDense,
                                    .dtype = fp8 ? DType::kE4M3 : DType::kBF16,
                                    .values = values.data(),
                                    .scales = fp8 ? scales.data() : nullptr};
    const std::size_t copies = std::clamp<std::size_t>(kRotatedBytes / values.size(), 2, 64);
    for (std::size_t i = 0; i < copies; ++i) weights_.push_back(backend_->pack_linear(source));
  }

  std::vector<unsigned char> random_values(bool fp8, std::int64_t count) {
    std::vector<unsigned char> bytes(static_cast<std::size_t>(count) * (fp8 ? 1 : 2));
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    // A prime number of values, repeated: drawing all of them would take longer than the products.
    constexpr std::int64_t kDrawn = 100003;
    for (std::int64_t i = 0; i < std::min(count, kDrawn); ++i) {
      const float value = uniform(random_);
      if (fp8) {
        bytes[static_cast<std::size_t>(i)] = to_e4m3(value * 100.0f);
      } else {
        reinterpret_cast<BFloat16*>(bytes.data())[i] = to_bfloat16(value);
      }
    }
    const std::size_t period = static_cast<std::size_t>(kDrawn) * (fp8 ? 1 : 2);
    for (std::size_t i = period; i < bytes.size(); i += period) {
      std::copy_n(bytes.begin(), std::min(period, bytes.size() - i), bytes.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return bytes;
  }

  template <class T>
  std::unique_ptr<Buffer> upload(const std::vector<T>& values) {
    auto buffer = backend_->device().allocate(values.size() * sizeof(T));
    stream_->copy_to_device(buffer->data(), values.data(), values.size() * sizeof(T));
    stream_->synchronize();
    return buffer;
  }

  // The first and the last rows of y.
  std::vector<float> ends(const void* y, std::int64_t rows, std::int64_t outputs, bool wide) {
    const std::int64_t some = std::min(rows, kComparedRows);
    std::vector<float> out = download(y, some * outputs, wide);
    const auto skipped = static_cast<std::size_t>((rows - some) * outputs) * (wide ? 4 : 2);
    const std::vector<float> last = download(static_cast<const std::byte*>(y) + skipped, some * outputs, wide);
    out.insert(out.end(), last.begin(), last.end());
    return out;
  }

  std::vector<float> download(const void* from, std::int64_t count, bool wide) {
    std::vector<float> out(static_cast<std::size_t>(count));
    std::vector<BFloat16> narrow(wide ? 0 : out.size());
    stream_->copy_to_host(wide ? static_cast<void*>(out.data()) : narrow.data(), from, out.size() * (wide ? 4 : 2));
    stream_->synchronize();
    for (std::size_t i = 0; i < narrow.size(); ++i) out[i] = to_float(narrow[i]);
    return out;
  }

  static double difference(const std::vector<float>& got, const std::vector<float>& want) {
    double largest = 0.0;
    double worst = 0.0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (!std::isfinite(got[i])) return 1e9;
      largest = std::max<double>(largest, std::abs(want[i]));
      worst = std::max<double>(worst, std::abs(got[i] - want[i]));
    }
    return worst / std::max(largest, 1e-30);
  }

  // issue(weight) issues one call.
  template <class Issue>
  void record(const Issue& issue) {
    const int calls = static_cast<int>(weights_.size()) * (weights_.size() < 16 ? 4 : 1);
    timer_.add(calls, [&](int i) { issue(weights_[static_cast<std::size_t>(i) % weights_.size()].get()); });
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CudaStream> stream_;
  ReplayTimer timer_{*stream_};
  int multiprocessors_ = 0;
  std::mt19937 random_{1};
  std::vector<std::unique_ptr<LinearWeight>> weights_;
};

}  // namespace
}  // namespace onerec::cuda

int main() {
  const std::string reason = onerec::why_no_cuda();
  if (!reason.empty()) {
    std::fprintf(stderr, "[tune_gemms] %s\n", reason.c_str());
    return 2;
  }
  onerec::cuda::Tuner tuner;
  std::string types;
  std::int64_t outputs = 0;
  std::int64_t inputs = 0;
  std::int64_t rows = 0;
  while (std::cin >> types >> outputs >> inputs >> rows) {
    if (types == "fp8_swiglu" || types == "fp8_swiglu_static") {
      tuner.tune_swiglu(outputs, inputs, rows, types == "fp8_swiglu" ? 0.0f : 1.0f);
    } else {
      tuner.tune(types, outputs, inputs, rows);
    }
  }
  return 0;
}
