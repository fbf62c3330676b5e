// The feed-forward sub-layer of a decoder block: dense SwiGLU, or a mixture of experts (arXiv 2412.19437,
// section 2.1.2).
#pragma once

#include <vector>

#include "model/onerec_v2.h"
#include "model/pass_memory.h"
#include "model/residual_stream.h"
#include "ops/linear_route.h"
#include "ops/linear_swiglu.h"

namespace onerec {

class FeedForward {
 public:
  // `step_rows`: the row capacities that add_to is called with.
  FeedForward(const OneRecV2& model, const std::vector<std::int64_t>& step_rows, OpContext& context,
              PassMemory& memory);

  // h += FFN(RMSNorm(h)) for the live rows. `next`: the norm of h that is read behind it, and multiplied by `reader`.
  void add_to(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
              const RmsNormParams& next, const LinearWeight* reader);

  // The norm of h that the sub-layer begins with, and what multiplies it if that is a single product.
  RmsNormParams norm(const Matrix& h, const LayerWeights& layer, const Extent& rows) const;
  static const LinearWeight* reader(const LayerWeights& layer) {
    return layer.moe ? nullptr : layer.dense.gate_up.get();
  }

 private:
  // A gated network's two products, the second with its input: out = FFN(x) + residual.
  struct Network {
    LinearParams first;
    PreparedLinearParams second;
    LinearSwigluParams first_with_activation;
  };
  Network network(const FeedForwardWeights& weights, const Operand& x, const ConstMatrix& residual, const Matrix& out,
                  const Extent& rows) const;
  void dense(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
             const RmsNormParams& next, const LinearWeight* reader);
  // shared_out_ from x.
  void shared(OpContext& context, const FeedForwardWeights& weights, const Operand& x, const Extent& rows);
  // How the rows of a step lie sorted by expert.
  struct SortedRows {
    std::int64_t alignment;
    std::int64_t capacity;
  };
  SortedRows sorted_rows(std::int64_t rows) const;
  void mixture(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
               const RmsNormParams& next, const LinearWeight* reader);
  // sorted_out_ from expert_x_ and sources_.
  void experts(const FeedForwardWeights& weights, const SortedRows& sorted);
  // Input of a MoE layer's shared network: its codes have a scale per row, those of the experts may have one per block.
  const Operand& shared_x() const { return expert_x_.scale_kind == ScaleKind::kPerBlock ? x_ : expert_x_; }

  const OneRecV2& model_;
  OpContext& context_;
  Operand x_;       // [rows, d]: input of dense and shared networks
  Matrix gate_up_;  // [rows, 2 * width] of the widest dense or shared network
  Operand hidden_;  // [rows, width]

  // Mixture of experts: per row, then per (row, choice) sorted by expert.
  Matrix router_x_;  // [rows, d], FP32 or BF16
  Operand expert_x_;
  Matrix router_logits_;
  std::int32_t* selected_ = nullptr;
  float* weights_ = nullptr;
  std::int32_t* offsets_ = nullptr;
  std::int32_t* slots_ = nullptr;
  std::int32_t* sources_ = nullptr;
  Operand sorted_x_;
  Matrix sorted_gate_up_;
  Operand sorted_hidden_;
  Matrix sorted_out_;
  Matrix shared_out_;
};

}  // namespace onerec
