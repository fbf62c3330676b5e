#include "backends/cuda/gemm/grouped_gemm.h"

#include "backends/cuda/gemm/grouped_instances.h"
#include "core/error.h"

namespace onerec::cuda {
namespace {

GroupedRunner runner_of(const GroupedConfig& config) {
  switch (config.format) {
    case WeightFormat::kDense:
      return grouped_bf16(config.outputs, config.tokens);
    case WeightFormat::kFp8Channel:
      return grouped_fp8_channel(config.outputs, config.tokens);
    case WeightFormat::kFp8Block:
      return grouped_fp8_block(config.outputs, config.tokens);
  }
  return nullptr;
}

}  // namespace

std::string grouped_name(int config) {
  return config == kPlainGrouped ? "plain" : grouped_configs()[static_cast<std::size_t>(config)].name;
}

void grouped_gemm(Stream& stream, const GroupedLinearParams& params, int config, int multiprocessors) {
  const GroupedConfig& chosen = grouped_configs()[static_cast<std::size_t>(config)];
  require(grouped_config_fits(chosen, params), "[grouped_linear] got config ", chosen.name, " for weight '",
          params.weight->name, "' of ", params.weight->outputs, " x ", params.weight->inputs, " with alignment ",
          params.alignment, ", want one that fits. Let choose_grouped_config() choose.");
  runner_of(chosen)(stream, params, multiprocessors);
}

}  // namespace onerec::cuda
