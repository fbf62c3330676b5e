// The context processor: token features in, the context keys and values of every L_kv group out.
#pragma once

#include <vector>

#include "model/onerec_v2.h"
#include "model/pass_memory.h"

namespace onerec {

class ContextProcessor {
 public:
  ContextProcessor(const OneRecV2& model, const PassShape& shape, OpContext& context, PassMemory& memory);

  // Gathers, projects, adds positions, packs and normalises; see docs/checkpoint_format.md, "Tensors".
  void encode(const PassInputs& inputs);
  // Keys and values of group j: [context tokens, G_kv * d_head]; the same memory where S_kv = 1.
  ConstMatrix keys(std::int64_t group) const { return slice(group * split_); }
  ConstMatrix values(std::int64_t group) const { return slice(group * split_ + split_ - 1); }
  // Operand::static_scale of what attention makes of the values; 0: not known.
  float values_scale(std::int64_t group) const;

 private:
  Matrix slice(std::int64_t index) const { return rows_.columns(index * width_, width_); }

  const OneRecV2& model_;
  const PassShape& shape_;
  OpContext& context_;
  std::int64_t split_;
  std::int64_t width_;
  Matrix rows_;  // [context tokens, d_context]: projections, normalised in place
  // One buffer for each of a pathway's stages; pathways take turns.
  std::vector<std::vector<Matrix>> stages_;
};

}  // namespace onerec
