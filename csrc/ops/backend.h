// A backend: a device and one implementation of every op. Chosen once per engine.
#pragma once

#include <memory>
#include <string>

#include "ops/beam_search.h"
#include "ops/combine_norm.h"
#include "ops/cross_attention.h"
#include "ops/device.h"
#include "ops/embed_context.h"
#include "ops/embed_step.h"
#include "ops/grouped_linear.h"
#include "ops/grouped_swiglu.h"
#include "ops/linear.h"
#include "ops/linear_norm.h"
#include "ops/linear_route.h"
#include "ops/linear_swiglu.h"
#include "ops/moe.h"
#include "ops/prepared_linear.h"
#include "ops/quantize.h"
#include "ops/rms_norm.h"
#include "ops/routed_feed_forward.h"
#include "ops/self_attention.h"
#include "ops/swiglu.h"

namespace onerec {

// Every op has `<op>_workspace`, the scratch bytes that it needs for these params (branching on capacities only), and
// `<op>` itself, which runs or records. Params have been validated by ops/<op>.cpp.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device& device() = 0;
  // Empty if this backend can pack and multiply such a weight, else the reason.
  virtual std::string why_not(const LinearWeightSource& source) const = 0;
  virtual std::unique_ptr<LinearWeight> pack_linear(const LinearWeightSource& source) = 0;

  // Whether any op takes Operand::static_scale.
  virtual bool takes_static_scales() const { return false; }

  virtual std::size_t linear_workspace(const LinearParams&) const { return 0; }
  virtual void linear(Stream&, const LinearParams&, Workspace) = 0;
  // Whether linear_swiglu() does these params in one product; if not, the op issues its parts. Its workspace does not
  // depend on addresses.
  virtual bool fuses_linear_swiglu(const LinearSwigluParams&) const { return false; }
  virtual std::size_t linear_swiglu_workspace(const LinearSwigluParams&) const { return 0; }
  virtual void linear_swiglu(Stream&, const LinearSwigluParams&, Workspace);
  // Whether prepared_linear() does these params in one kernel; if not, the op issues its parts.
  virtual bool fuses_prepared_linear(const PreparedLinearParams&) const { return false; }
  virtual void prepared_linear(Stream&, const PreparedLinearParams&);
  // Whether linear_norm() does these params in one kernel; if not, the op issues its parts.
  virtual bool fuses_linear_norm(const LinearNormParams&) const { return false; }
  virtual void linear_norm(Stream&, const LinearNormParams&);
  // Whether products of so many rows and this weight read codes whose norm is pending.
  virtual bool reads_pending_norm(const LinearWeight&, std::int64_t /*rows*/) const { return false; }
  // The rows of each expert start at a multiple of this in grouped_linear; depends on these arguments alone. `rows`:
  // the capacity before routing.
  virtual std::int64_t grouped_alignment(std::int64_t /*rows*/, std::int64_t /*experts*/,
                                         std::int64_t /*top_k*/) const {
    return 1;
  }
  virtual std::size_t grouped_linear_workspace(const GroupedLinearParams&) const { return 0; }
  virtual void grouped_linear(Stream&, const GroupedLinearParams&, Workspace) = 0;
  // Whether grouped_swiglu() does these params in one kernel; if not, the op issues its parts.
  virtual bool fuses_grouped_swiglu(const GroupedSwigluParams&) const { return false; }
  virtual void grouped_swiglu(Stream&, const GroupedSwigluParams&);
  virtual void rms_norm(Stream&, const RmsNormParams&) = 0;
  virtual void quantize(Stream&, const QuantizeParams&) = 0;
  virtual void swiglu(Stream&, const SwigluParams&) = 0;
  // Whether cross_attention() makes the codes of these params; if not, the op quantises its output.
  virtual bool fuses_cross_attention_codes(const CrossAttentionParams&) const { return false; }
  virtual std::size_t cross_attention_workspace(const CrossAttentionParams&) const { return 0; }
  virtual void cross_attention(Stream&, const CrossAttentionParams&, Workspace) = 0;
  virtual void self_attention(Stream&, const SelfAttentionParams&) = 0;
  virtual void embed_context(Stream&, const EmbedContextParams&) = 0;
  virtual void scatter_context(Stream&, const ScatterContextParams&) = 0;
  virtual void embed_step(Stream&, const EmbedStepParams&) = 0;
  virtual std::size_t route_workspace(const RouteParams&) const { return 0; }
  virtual void route(Stream&, const RouteParams&, Workspace) = 0;
  // Whether linear_route() does these params at once; if not, the op issues its parts. Its workspace is that of
  // route().
  virtual bool fuses_linear_route(const LinearRouteParams&) const { return false; }
  virtual void linear_route(Stream&, const LinearRouteParams&, Workspace);
  virtual void gather_rows(Stream&, const GatherRowsParams&) = 0;
  // Whether routed_feed_forward() does both products of these params in one kernel; if not, the op issues its parts.
  // Its workspace does not depend on addresses.
  virtual bool fuses_routed_feed_forward(const RoutedFeedForwardParams&) const { return false; }
  virtual std::size_t routed_feed_forward_workspace(const RoutedFeedForwardParams&) const { return 0; }
  virtual void routed_feed_forward(Stream&, const RoutedFeedForwardParams&, Workspace);
  virtual void moe_combine(Stream&, const MoeCombineParams&) = 0;
  // Whether combine_norm() does these params in one kernel; if not, the op issues its parts.
  virtual bool fuses_combine_norm(const CombineNormParams&) const { return false; }
  virtual void combine_norm(Stream&, const CombineNormParams&);
  virtual void trie_filter(Stream&, const TrieFilterParams&) = 0;
  virtual std::size_t beam_select_workspace(const BeamSelectParams&) const { return 0; }
  virtual void beam_select(Stream&, const BeamSelectParams&, Workspace) = 0;
  virtual std::size_t beam_force_workspace(const BeamForceParams&) const { return 0; }
  virtual void beam_force(Stream&, const BeamForceParams&, Workspace) = 0;
};

}  // namespace onerec
