// The CPU backend: the oracle of every other backend, and the engine on machines without a GPU. One file per op.
#pragma once

#include "backends/cpu/cpu_device.h"
#include "ops/backend.h"

namespace onerec::cpu {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : device_(threads) {}

  Device& device() override { return device_; }
  std::string why_not(const LinearWeightSource& source) const override;
  std::unique_ptr<LinearWeight> pack_linear(const LinearWeightSource& source) override;

  std::size_t linear_workspace(const LinearParams& params) const override;
  void linear(Stream& stream, const LinearParams& params, Workspace workspace) override;
  std::size_t grouped_linear_workspace(const GroupedLinearParams& params) const override;
  void grouped_linear(Stream& stream, const GroupedLinearParams& params, Workspace workspace) override;
  void rms_norm(Stream& stream, const RmsNormParams& params) override;
  void quantize(Stream& stream, const QuantizeParams& params) override;
  void swiglu(Stream& stream, const SwigluParams& params) override;
  std::size_t cross_attention_workspace(const CrossAttentionParams& params) const override;
  void cross_attention(Stream& stream, const CrossAttentionParams& params, Workspace workspace) override;
  void self_attention(Stream& stream, const SelfAttentionParams& params) override;
  void embed_context(Stream& stream, const EmbedContextParams& params) override;
  void scatter_context(Stream& stream, const ScatterContextParams& params) override;
  void embed_step(Stream& stream, const EmbedStepParams& params) override;
  std::size_t route_workspace(const RouteParams& params) const override;
  void route(Stream& stream, const RouteParams& params, Workspace workspace) override;
  void gather_rows(Stream& stream, const GatherRowsParams& params) override;
  void moe_combine(Stream& stream, const MoeCombineParams& params) override;
  void trie_filter(Stream& stream, const TrieFilterParams& params) override;
  std::size_t beam_select_workspace(const BeamSelectParams& params) const override;
  void beam_select(Stream& stream, const BeamSelectParams& params, Workspace workspace) override;
  std::size_t beam_force_workspace(const BeamForceParams& params) const override;
  void beam_force(Stream& stream, const BeamForceParams& params, Workspace workspace) override;

 private:
  CpuDevice device_;
};

// Work on the CPU's stream: now, or at every replay.
template <class F>
void submit(Stream& stream, F&& work) {
  static_cast<CpuStream&>(stream).submit(std::forward<F>(work));
}

// The live rows of an extent when the op runs.
inline std::int64_t live(const Extent& extent) { return extent.count == nullptr ? extent.capacity : *extent.count; }

}  // namespace onerec::cpu
