// Times every kernel of the grouped FP8 products of a mixture of experts, each with the alignment of its own tiles, on
// rows routed at random:
//   tune_grouped [experts hidden width top_k rows...]
// Prints a line per product, number of rows and kernel: microseconds of one call (the median of replays of a CUDA graph
// of several calls; the weights are larger than the L2 cache), TFLOP/s of the routed rows, TB/s of the least that has
// to be read and written, the largest difference from the first kernel's result in each expert's first and last rows
// over the largest magnitude there, and whether the engine chooses the kernel. Where one kernel can do both products,
// they are timed with the gather in front of them as well, in turns: as parts, and as that kernel.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "backends/cuda/cuda_device.h"
#include "backends/cuda/cuda_error.h"
#include "backends/cuda/gather_rows.h"
#include "backends/cuda/gemm/grouped_gemm.h"
#include "backends/cuda/gemm/grouped_select.h"
#include "backends/registry.h"
#include "core/bfloat16.h"
#include "core/float8.h"
#include "replay_timer.h"

namespace onerec::cuda {
namespace {

constexpr int kCalls = 6;
constexpr std::int64_t kComparedRows = 2;  // at either end of an expert's rows
constexpr std::int64_t kDrawnRows = 1009;  // different rows of x

struct Model {
  std::int64_t experts = 53;
  std::int64_t hidden = 1408;
  std::int64_t width = 1408;
  std::int64_t top_k = 3;
};

std::int64_t round_up(std::int64_t value, std::int64_t step) { return (value + step - 1) / step * step; }

class Tuner {
 public:
  explicit Tuner(const Model& model)
      : model_(model), backend_(make_cuda_backend()), stream_(std::make_unique<CudaStream>()) {
    check(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, 0), "count multiprocessors");
    gate_up_ = make_weight("gate_up", 2 * model.width, model.hidden);
    down_ = make_weight("down", model.hidden, model.width);
  }

  void tune(std::int64_t rows) {
    route(rows);
    chosen_alignment_ = choose_grouped_alignment(rows, model_.experts, model_.top_k);
    tune_swiglu(rows);
    tune_down(rows);
    tune_network(rows);
  }

 private:
  // Rows in the order of their experts, laid out for one alignment.
  struct Layout {
    std::vector<std::int32_t> starts;
    std::int64_t capacity = 0;
    std::unique_ptr<Buffer> offsets;
    std::unique_ptr<Buffer> x;
    std::unique_ptr<Buffer> scales;
  };

  void tune_swiglu(std::int64_t rows) {
    const auto configs = grouped_swiglu_configs();
    std::vector<float> reference;
    for (std::size_t i = 0; i < configs.size(); ++i) {
      const Layout layout = lay_out(rows, configs[i].tokens, model_.hidden);
      const std::int64_t blocks = scale_blocks(model_.width);
      const auto codes = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * model_.width));
      const auto scales = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * blocks) * 4);
      const GroupedSwigluParams params{
          .x = operand(layout, model_.hidden),
          .weight = gate_up_.get(),
          .offsets = static_cast<const std::int32_t*>(layout.offsets->data()),
          .width = model_.width,
          .gate_up = {nullptr, DType::kBF16, layout.capacity, 2 * model_.width, 2 * model_.width},
          .quantized = operand(*codes, *scales, layout.capacity, model_.width),
          .rows_capacity = layout.capacity,
          .alignment = configs[i].tokens};
      if (!grouped_swiglu_config_fits(configs[i], params)) continue;
      const auto run = [&] { grouped_swiglu_gemm(*stream_, params, static_cast<int>(i), multiprocessors_); };
      const double us = microseconds(run);
      const auto code_bytes = download<std::uint8_t>(*codes, layout.capacity * model_.width);
      const auto code_scales = download<float>(*scales, layout.capacity * blocks);
      const auto value = [&](std::int64_t row, std::int64_t column) {
        return from_e4m3(code_bytes[static_cast<std::size_t>(row * model_.width + column)]) *
               code_scales[static_cast<std::size_t>(column / kScaleBlock * layout.capacity + row)];
      };
      const double away = difference(layout, model_.width, value, reference);
      report("gate_up", rows, configs[i], us, *gate_up_, model_.width, away,
             configs[i].tokens == chosen_alignment_ && choose_grouped_swiglu_config(params) == static_cast<int>(i));
    }
  }

  void tune_down(std::int64_t rows) {
    const auto configs = grouped_configs();
    std::vector<float> reference;
    for (std::size_t i = 0; i < configs.size(); ++i) {
      if (configs[i].format != WeightFormat::kFp8Block) continue;
      const Layout layout = lay_out(rows, configs[i].tokens, model_.width);
      const auto y = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * model_.hidden) * 2);
      const GroupedLinearParams params{.x = operand(layout, model_.width),
                                       .weight = down_.get(),
                                       .offsets = static_cast<const std::int32_t*>(layout.offsets->data()),
                                       .y = {y->data(), DType::kBF16, layout.capacity, model_.hidden, model_.hidden},
                                       .rows_capacity = layout.capacity,
                                       .alignment = configs[i].tokens};
      if (!grouped_config_fits(configs[i], params)) continue;
      const auto run = [&] { grouped_gemm(*stream_, params, static_cast<int>(i), multiprocessors_); };
      const double us = microseconds(run);
      const auto result = download<BFloat16>(*y, layout.capacity * model_.hidden);
      const auto value = [&](std::int64_t row, std::int64_t column) {
        return to_float(result[static_cast<std::size_t>(row * model_.hidden + column)]);
      };
      const double away = difference(layout, model_.hidden, value, reference);
      report("down", rows, configs[i], us, *down_, 2 * model_.hidden, away,
             configs[i].tokens == chosen_alignment_ && choose_grouped_config(params) == static_cast<int>(i));
    }
  }

  void tune_network(std::int64_t rows) {
    const Layout layout = lay_out(rows, chosen_alignment_, model_.hidden);
    const auto sorted = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * model_.hidden));
    const auto sorted_scales =
        backend_->device().allocate(static_cast<std::size_t>(layout.capacity * scale_blocks(model_.hidden)) * 4);
    const auto codes = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * model_.width));
    const auto code_scales =
        backend_->device().allocate(static_cast<std::size_t>(layout.capacity * scale_blocks(model_.width)) * 4);
    const auto y = backend_->device().allocate(static_cast<std::size_t>(layout.capacity * model_.hidden) * 2);
    std::vector<std::int32_t> in_place(static_cast<std::size_t>(layout.capacity), -1);
    for (std::size_t e = 0; e < counts_.size(); ++e) {
      const auto first = in_place.begin() + layout.starts[e];
      std::iota(first, first + counts_[e], layout.starts[e]);
    }
    const auto sources = upload(in_place);
    const auto* const offsets = static_cast<const std::int32_t*>(layout.offsets->data());
    const Operand x = operand(*sorted, *sorted_scales, layout.capacity, model_.hidden);
    const Operand hidden = operand(*codes, *code_scales, layout.capacity, model_.width);
    const RoutedFeedForwardParams params{
        .gather = {.x = operand(layout, model_.hidden),
                   .sources = static_cast<const std::int32_t*>(sources->data()),
                   .sorted = x,
                   .sorted_rows = {layout.capacity, offsets + model_.experts}},
        .first = {.x = x,
                  .weight = gate_up_.get(),
                  .offsets = offsets,
                  .width = model_.width,
                  .gate_up = {nullptr, DType::kBF16, layout.capacity, 2 * model_.width, 2 * model_.width},
                  .quantized = hidden,
                  .rows_capacity = layout.capacity,
                  .alignment = chosen_alignment_},
        .second = {.x = hidden,
                   .weight = down_.get(),
                   .offsets = offsets,
                   .y = {y->data(), DType::kBF16, layout.capacity, model_.hidden, model_.hidden},
                   .rows_capacity = layout.capacity,
                   .alignment = chosen_alignment_}};
    const int config = choose_network_config(params);
    if (config == kNoNetwork) return;
    const auto progress = backend_->device().allocate(static_cast<std::size_t>(network_progress_words(params)) * 4);
    auto* const words = static_cast<std::uint32_t*>(progress->data());
    const auto parts = [&](int) {
      backend_->gather_rows(*stream_, params.gather);
      backend_->grouped_swiglu(*stream_, params.first);
      backend_->grouped_linear(*stream_, params.second, {});
    };
    const auto network = [&](int) {
      gather_and_clear(*stream_, params.gather, {words, network_progress_words(params)});
      network_gemm(*stream_, params, config, multiprocessors_, words);
    };
    timer_.add(kCalls, parts);
    timer_.add(kCalls, network);
    const std::vector<double> us = timer_.microseconds();
    std::vector<float> reference;
    const auto away = [&](const auto& issue) {
      issue(0);
      const auto result = download<BFloat16>(*y, layout.capacity * model_.hidden);
      return difference(
          layout, model_.hidden,
          [&](std::int64_t row, std::int64_t column) {
            return to_float(result[static_cast<std::size_t>(row * model_.hidden + column)]);
          },
          reference);
    };
    away(parts);
    std::printf("network  rows %6lld  %-36s %9.2f us, as parts %9.2f us  difference %.2e\n",
                static_cast<long long>(rows), network_configs()[static_cast<std::size_t>(config)].name, us[1], us[0],
                away(network));
    std::fflush(stdout);
  }

  void report(const char* product, std::int64_t rows, const GroupedConfig& config, double us,
              const LinearWeight& weight, std::int64_t result_bytes, double away, bool chosen) const {
    const auto routed = static_cast<double>(rows * model_.top_k);
    const auto outputs = static_cast<double>(weight.outputs);
    const auto inputs = static_cast<double>(weight.inputs);
    const double used = static_cast<double>(
        std::count_if(counts_.begin(), counts_.end(), [](std::int64_t count) { return count != 0; }));
    const double bytes = used * outputs * inputs + routed * (inputs + static_cast<double>(result_bytes));
    std::printf("%-8s rows %6lld  %-36s %9.2f us  %7.1f TFLOP/s  %6.3f TB/s  difference %.2e%s\n", product,
                static_cast<long long>(rows), config.name, us, 2.0 * routed * outputs * inputs / us * 1e-6,
                bytes / us * 1e-6, away, chosen ? "  chosen" : "");
    std::fflush(stdout);
  }

  void route(std::int64_t rows) {
    counts_.assign(static_cast<std::size_t>(model_.experts), 0);
    std::vector<std::size_t> experts(counts_.size());
    std::iota(experts.begin(), experts.end(), std::size_t{0});
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(model_.top_k); ++i) {
        std::uniform_int_distribution<std::size_t> rest(i, experts.size() - 1);
        std::swap(experts[i], experts[rest(random_)]);
        ++counts_[experts[i]];
      }
    }
  }

  Layout lay_out(std::int64_t rows, std::int64_t alignment, std::int64_t inputs) {
    Layout layout;
    layout.capacity = round_up(rows * model_.top_k + model_.experts * (alignment - 1), alignment);
    layout.starts = {0};
    for (const std::int64_t count : counts_) {
      layout.starts.push_back(static_cast<std::int32_t>(layout.starts.back() + round_up(count, alignment)));
    }
    const std::vector<unsigned char> drawn = random_codes(kDrawnRows * inputs);
    std::vector<unsigned char> x(static_cast<std::size_t>(layout.capacity * inputs), 0);
    const std::int64_t blocks = scale_blocks(inputs);
    std::vector<float> scales(static_cast<std::size_t>(layout.capacity * blocks), 1.0f);
    std::int64_t routed = 0;
    for (std::size_t e = 0; e < counts_.size(); ++e) {
      for (std::int64_t i = 0; i < counts_[e]; ++i, ++routed) {
        const std::int64_t row = layout.starts[e] + i;
        std::copy_n(drawn.begin() + routed % kDrawnRows * inputs, inputs, x.begin() + row * inputs);
        for (std::int64_t b = 0; b < blocks; ++b) {
          scales[static_cast<std::size_t>(b * layout.capacity + row)] =
              0.01f * static_cast<float>(1 + (routed + b) % 3);
        }
      }
    }
    layout.offsets = upload(layout.starts);
    layout.x = upload(x);
    layout.scales = upload(scales);
    return layout;
  }

  static Operand operand(const Layout& layout, std::int64_t inputs) {
    return operand(*layout.x, *layout.scales, layout.capacity, inputs);
  }

  static Operand operand(const Buffer& codes, const Buffer& scales, std::int64_t rows, std::int64_t columns) {
    return {.values = {codes.data(), DType::kE4M3, rows, columns, columns},
            .scale_kind = ScaleKind::kPerBlock,
            .scales = static_cast<float*>(scales.data()),
            .scale_stride = rows};
  }

  std::unique_ptr<LinearWeight> make_weight(const char* name, std::int64_t outputs, std::int64_t inputs) {
    const std::vector<unsigned char> values = random_codes(model_.experts * outputs * inputs);
    std::vector<float> scales(static_cast<std::size_t>(model_.experts * scale_blocks(outputs) * scale_blocks(inputs)));
    for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = 0.001f * static_cast<float>(1 + i % 7);
    return backend_->pack_linear({.name = name,
                                  .experts = model_.experts,
                                  .outputs = outputs,
                                  .inputs = inputs,
                                  .format = WeightFormat::kFp8Block,
                                  .dtype = DType::kE4M3,
                                  .values = values.data(),
                                  .scales = scales.data()});
  }

  // A prime number of codes, repeated: drawing all of them would take longer than the products. Always the same ones.
  static std::vector<unsigned char> random_codes(std::int64_t count) {
    constexpr std::size_t kDrawn = 100003;
    std::mt19937 random(2);
    std::normal_distribution<float> normal(0.0f, 60.0f);
    std::vector<unsigned char> codes(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < std::min(codes.size(), kDrawn); ++i) codes[i] = to_e4m3(normal(random));
    for (std::size_t i = kDrawn; i < codes.size(); i += kDrawn) {
      std::copy_n(codes.begin(), std::min(kDrawn, codes.size() - i), codes.begin() + static_cast<std::ptrdiff_t>(i));
    }
    return codes;
  }

  template <class T>
  std::unique_ptr<Buffer> upload(const std::vector<T>& values) {
    auto buffer = backend_->device().allocate(values.size() * sizeof(T));
    stream_->copy_to_device(buffer->data(), values.data(), values.size() * sizeof(T));
    stream_->synchronize();
    return buffer;
  }

  template <class T>
  std::vector<T> download(const Buffer& buffer, std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    stream_->copy_to_host(values.data(), buffer.data(), values.size() * sizeof(T));
    stream_->synchronize();
    return values;
  }

  // The first call makes the reference.
  template <class Value>
  double difference(const Layout& layout, std::int64_t columns, const Value& value, std::vector<float>& reference) {
    std::vector<float> got;
    for (std::size_t e = 0; e < counts_.size(); ++e) {
      for (std::int64_t i = 0; i < counts_[e]; ++i) {
        if (i >= kComparedRows && i < counts_[e] - kComparedRows) continue;
        for (std::int64_t c = 0; c < columns; ++c) got.push_back(value(layout.starts[e] + i, c));
      }
    }
    if (reference.empty()) reference = got;
    double largest = 0.0;
    double worst = 0.0;
    for (std::size_t i = 0; i < got.size(); ++i) {
      if (!std::isfinite(got[i])) return INFINITY;
      largest = std::max<double>(largest, std::abs(reference[i]));
      worst = std::max<double>(worst, std::abs(got[i] - reference[i]));
    }
    return worst / std::max(largest, 1e-30);
  }

  template <class Run>
  double microseconds(const Run& run) {
    timer_.add(kCalls, [&](int) { run(); });
    return timer_.microseconds().front();
  }

  Model model_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<CudaStream> stream_;
  ReplayTimer timer_{*stream_};
  int multiprocessors_ = 0;
  std::mt19937 random_{1};
  std::unique_ptr<LinearWeight> gate_up_;
  std::unique_ptr<LinearWeight> down_;
  std::vector<std::int64_t> counts_;
  std::int64_t chosen_alignment_ = 0;
};

}  // namespace
}  // namespace onerec::cuda

int main(int argc, char** argv) {
  const std::string reason = onerec::why_no_cuda();
  if (!reason.empty()) {
    std::fprintf(stderr, "[tune_grouped] %s\n", reason.c_str());
    return 2;
  }
  std::vector<std::int64_t> numbers;
  for (int i = 1; i < argc; ++i) numbers.push_back(std::atoll(argv[i]));
  onerec::cuda::Model model;
  std::vector<std::int64_t> rows = {1, 128, 512, 2048, 16384};
  if (numbers.size() > 4) {
    model = {.experts = numbers[0], .hidden = numbers[1], .width = numbers[2], .top_k = numbers[3]};
    rows.assign(numbers.begin() + 4, numbers.end());
  } else if (!numbers.empty()) {
    std::fprintf(stderr, "usage: tune_grouped [experts hidden width top_k rows...]\n");
    return 2;
  }
  onerec::cuda::Tuner tuner(model);
  for (const std::int64_t some : rows) tuner.tune(some);
  return 0;
}
