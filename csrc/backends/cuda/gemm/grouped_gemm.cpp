#include "backends/cuda/gemm/grouped_gemm.h"

#include "backends/cuda/gemm/grouped_instances.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

GroupedRunner runner_of(const GroupedConfig& config) {
  switch (config.format) {
    case WeightFormat::kDense:
      return grouped_bf16(config);
    case WeightFormat::kFp8Channel:
      return grouped_fp8_channel(config);
    case WeightFormat::kFp8Block:
      return grouped_fp8_block(config);
  }
  return nullptr;
}

void check_fits(const char* op, bool fits, const GroupedConfig& config, const LinearWeight& weight,
                std::int64_t alignment) {
  require(fits, "[", op, "] got config ", config.name, " for weight '", weight.name, "' of ", weight.outputs, " x ",
          weight.inputs, " with alignment ", alignment, ", want one that fits. Let grouped_select.h choose.");
}

}  // namespace

std::string grouped_name(int config) {
  return config == kPlainGrouped ? "plain" : grouped_configs()[static_cast<std::size_t>(config)].name;
}

void grouped_gemm(Stream& stream, const GroupedLinearParams& params, int config, int multiprocessors) {
  const GroupedConfig& chosen = grouped_configs()[static_cast<std::size_t>(config)];
  check_fits("grouped_linear", grouped_config_fits(chosen, params), chosen, *params.weight, params.alignment);
  runner_of(chosen)(stream, params, multiprocessors);
}

void grouped_swiglu_gemm(Stream& stream, const GroupedSwigluParams& params, int config, int multiprocessors) {
  const GroupedConfig& chosen = grouped_swiglu_configs()[static_cast<std::size_t>(config)];
  check_fits("grouped_swiglu", grouped_swiglu_config_fits(chosen, params), chosen, *params.weight, params.alignment);
  grouped_swiglu_fp8_block(chosen)(stream, params, multiprocessors);
}

void network_gemm(Stream& stream, const RoutedFeedForwardParams& params, int config, int multiprocessors,
                  std::uint32_t* progress) {
  const GroupedConfig& chosen = network_configs()[static_cast<std::size_t>(config)];
  check_fits("routed_feed_forward", network_config_fits(chosen, params), chosen, *params.first.weight,
             params.first.alignment);
  network_fp8_block(chosen)(stream, params, multiprocessors, progress);
}

}  // namespace onerec::cuda
