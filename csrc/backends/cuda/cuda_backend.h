// The CUDA backend for Hopper GPUs (sm_90a). One file per op; device code is in kernels/, matrix products in gemm/.
#pragma once

#include <memory>

#include "ops/backend.h"

namespace onerec::cuda {

// What op files may branch on besides the params' capacities.
struct DeviceLimits {
  int multiprocessors = 1;
  bool tensor_cores = true;  // false: every matrix product takes the plain kernels (the host emulation of tests/simt)
  bool clusters = true;      // blocks can share their memory
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(std::unique_ptr<Device> device, const DeviceLimits& limits)
      : device_(std::move(device)), limits_(limits) {}

  Device& device() override { return *device_; }
  std::string why_not(const LinearWeightSource& source) const override;
  std::unique_ptr<LinearWeight> pack_linear(const LinearWeightSource& source) override;

  bool takes_static_scales() const override { return limits_.tensor_cores; }

  std::size_t linear_workspace(const LinearParams& params) const override;
  void linear(Stream& stream, const LinearParams& params, Workspace workspace) override;
  bool fuses_prepared_linear(const PreparedLinearParams& params) const override;
  void prepared_linear(Stream& stream, const PreparedLinearParams& params) override;
  bool fuses_linear_norm(const LinearNormParams& params) const override;
  void linear_norm(Stream& stream, const LinearNormParams& params) override;
  bool reads_pending_norm(const LinearWeight& weight, std::int64_t rows) const override;
  bool fuses_linear_swiglu(const LinearSwigluParams& params) const override;
  std::size_t linear_swiglu_workspace(const LinearSwigluParams& params) const override;
  void linear_swiglu(Stream& stream, const LinearSwigluParams& params, Workspace workspace) override;
  std::int64_t grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k) const override;
  std::size_t grouped_linear_workspace(const GroupedLinearParams& params) const override;
  void grouped_linear(Stream& stream, const GroupedLinearParams& params, Workspace workspace) override;
  bool fuses_grouped_swiglu(const GroupedSwigluParams& params) const override;
  void grouped_swiglu(Stream& stream, const GroupedSwigluParams& params) override;
  void rms_norm(Stream& stream, const RmsNormParams& params) override;
  void quantize(Stream& stream, const QuantizeParams& params) override;
  void swiglu(Stream& stream, const SwigluParams& params) override;
  bool fuses_cross_attention_codes(const CrossAttentionParams& params) const override;
  std::size_t cross_attention_workspace(const CrossAttentionParams& params) const override;
  void cross_attention(Stream& stream, const CrossAttentionParams& params, Workspace workspace) override;
  void self_attention(Stream& stream, const SelfAttentionParams& params) override;
  void embed_context(Stream& stream, const EmbedContextParams& params) override;
  void scatter_context(Stream& stream, const ScatterContextParams& params) override;
  void embed_step(Stream& stream, const EmbedStepParams& params) override;
  std::size_t route_workspace(const RouteParams& params) const override;
  void route(Stream& stream, const RouteParams& params, Workspace workspace) override;
  bool fuses_linear_route(const LinearRouteParams& params) const override;
  void linear_route(Stream& stream, const LinearRouteParams& params, Workspace workspace) override;
  void gather_rows(Stream& stream, const GatherRowsParams& params) override;
  bool fuses_routed_feed_forward(const RoutedFeedForwardParams& params) const override;
  std::size_t routed_feed_forward_workspace(const RoutedFeedForwardParams& params) const override;
  void routed_feed_forward(Stream& stream, const RoutedFeedForwardParams& params, Workspace workspace) override;
  void moe_combine(Stream& stream, const MoeCombineParams& params) override;
  bool fuses_combine_norm(const CombineNormParams& params) const override;
  void combine_norm(Stream& stream, const CombineNormParams& params) override;
  void trie_filter(Stream& stream, const TrieFilterParams& params) override;
  std::size_t beam_select_workspace(const BeamSelectParams& params) const override;
  void beam_select(Stream& stream, const BeamSelectParams& params, Workspace workspace) override;
  std::size_t beam_force_workspace(const BeamForceParams& params) const override;
  void beam_force(Stream& stream, const BeamForceParams& params, Workspace workspace) override;

 private:
  std::unique_ptr<Device> device_;
  DeviceLimits limits_;
};

}  // namespace onerec::cuda
