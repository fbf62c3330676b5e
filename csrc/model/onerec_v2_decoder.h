// The lazy decoder: per block cross-attention over the shared context, self-attention over the codes chosen so far,
// feed-forward network.
#pragma once

#include <vector>

#include "model/onerec_v2_context.h"
#include "model/onerec_v2_feed_forward.h"
#include "model/residual_stream.h"

namespace onerec {

class OneRecV2Pass final : public ModelPass {
 public:
  OneRecV2Pass(const OneRecV2& model, const PassShape& shape, const PassInputs& inputs, OpContext& context,
               PassMemory memory);

  void encode_context() override { context_processor_.encode(inputs_); }
  ConstMatrix decode_step(int step) override;

 private:
  void cross_attention_block(const LayerWeights& layer, std::int64_t index, int step, const Matrix& h,
                             const Extent& rows);
  void self_attention_block(const LayerWeights& layer, std::int64_t index, int step, const Matrix& h,
                            const Extent& rows);
  // RMSNorm(h) into x, in the form that the product behind it wants.
  RmsNormParams norm(const Matrix& h, const DeviceArray* gamma, const Operand& x, const Extent& rows) const;
  // y = RMSNorm(h) W^T, of which nobody reads the first `unread` columns.
  void project_norm(const RmsNormParams& norm, const Operand& x, const LinearLayer& layer, const Matrix& y,
                    std::int64_t unread = 0);
  void head_norm(const Matrix& x, const DeviceArray* gamma, std::int64_t heads, const Extent& rows);
  // h += attended W_o^T, for values that are not in the form that W_o wants. `next`, `reader`: as of ResidualStream.
  void project_out(const Matrix& attended, const LinearLayer& layer, const Matrix& h, const Extent& rows,
                   const RmsNormParams& next, const LinearWeight* reader);
  static LinearParams output_product(const Operand& attended, const LinearLayer& layer, const Matrix& h,
                                     const Extent& rows);

  const OneRecV2& model_;
  const PassShape shape_;
  const PassInputs inputs_;
  OpContext& context_;
  PassMemory memory_;
  ContextProcessor context_processor_;
  FeedForward feed_forward_;
  ResidualStream stream_;
  Matrix h_;            // [rows, d]: the residual stream
  Operand x_;           // [rows, d]: input of the projections
  Matrix q_;            // [rows, H * d_head]
  Matrix attended_;     // [rows, H * d_head]
  Operand attended_x_;  // the same, as W_o reads it
  Matrix head_x_;       // [rows, d]
  Matrix logits_;       // [rows, widest codebook], FP32
  // [step][layer]: q, k, v of the step's rows, which later steps read in place. The last step's are read by nobody
  // later: its layers share one buffer.
  std::vector<std::vector<Matrix>> qkv_;
};

}  // namespace onerec
