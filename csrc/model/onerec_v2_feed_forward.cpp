#include "model/onerec_v2_feed_forward.h"

#include <algorithm>
#include <optional>

namespace onerec {
namespace {

constexpr const char* kActivations = "activations";
// The shared network of this many rows runs beside the experts: short kernels leave most of a device idle, while those
// of more rows fill it.
constexpr std::int64_t kMostRowsBeside = 1024;

// The same buffer seen as [rows, cols].
Operand reshape(Operand operand, std::int64_t rows, std::int64_t cols) {
  operand.values.rows = rows;
  operand.values.cols = cols;
  operand.values.stride = cols;
  return operand;
}

Matrix reshape(Matrix matrix, std::int64_t rows, std::int64_t cols) {
  matrix.rows = rows;
  matrix.cols = cols;
  matrix.stride = cols;
  return matrix;
}

}  // namespace

FeedForward::FeedForward(const OneRecV2& model, const std::vector<std::int64_t>& step_rows, OpContext& context,
                         PassMemory& memory)
    : model_(model), context_(context) {
  const OneRecV2Config& config = model.config();
  const Precision& precision = model.precision();
  const DType dtype = precision.activation;
  const std::int64_t d = config.hidden_size;
  const std::int64_t rows = *std::max_element(step_rows.begin(), step_rows.end());
  std::int64_t width = 0;
  const LayerWeights* moe = nullptr;
  for (const auto& layer : model.tensors().layers) {
    width = std::max({width, layer.dense.width, layer.shared.width});
    if (layer.moe) moe = &layer;
  }
  const ScaleKind kind = scale_kind_for(precision.linear);
  if (width > 0) {
    x_ = memory.operand(kActivations, kind, dtype, rows, d);
    gate_up_ = memory.matrix(kActivations, dtype, rows, 2 * width);
    hidden_ = memory.operand(kActivations, kind, dtype, rows, width);
  }
  if (moe == nullptr) return;

  const ScaleKind expert_kind = scale_kind_for(precision.experts);
  const std::int64_t pairs = rows * config.num_experts_per_tok;
  std::int64_t sorted = 0;
  for (const std::int64_t step : step_rows) sorted = std::max(sorted, sorted_rows(step).capacity);
  router_x_ = memory.matrix(kActivations, dtype, rows, d);
  expert_x_ = expert_kind == ScaleKind::kNone ? Operand{.values = router_x_}
                                              : memory.operand(kActivations, expert_kind, dtype, rows, d);
  router_logits_ = memory.matrix(kActivations, DType::kF32, rows, moe->router.outputs);
  selected_ = memory.array<std::int32_t>(kActivations, pairs);
  weights_ = memory.array<float>(kActivations, pairs);
  offsets_ = memory.array<std::int32_t>(kActivations, config.n_routed_experts + 1);
  slots_ = memory.array<std::int32_t>(kActivations, pairs);
  sources_ = memory.array<std::int32_t>(kActivations, sorted);
  sorted_x_ = memory.operand(kActivations, expert_kind, dtype, sorted, d);
  sorted_gate_up_ = memory.matrix(kActivations, dtype, sorted, 2 * moe->experts.width);
  sorted_hidden_ = memory.operand(kActivations, expert_kind, dtype, sorted, moe->experts.width);
  sorted_out_ = memory.matrix(kActivations, dtype, sorted, d);
  if (moe->shared.width > 0) shared_out_ = memory.matrix(kActivations, dtype, rows, d);
}

RmsNormParams FeedForward::norm(const Matrix& h, const LayerWeights& layer, const Extent& rows) const {
  RmsNormParams norm{.x = h,
                     .gamma = layer.ffn_norm->floats(),
                     .width = model_.config().hidden_size,
                     .eps = model_.config().rms_norm_eps,
                     .gamma_magnitude = layer.ffn_norm->magnitude,
                     .rows = rows};
  if (!layer.moe) {
    norm.y = values_of(x_);
    norm.quantized = codes_of(x_);
    return norm;
  }
  // One norm for the router, the experts and the shared network.
  norm.y = router_x_;
  norm.quantized = codes_of(expert_x_);
  if (expert_x_.scale_kind == ScaleKind::kPerBlock && layer.shared.width > 0) {
    norm.quantized = shared_x();
    norm.quantized_blocks = expert_x_;
  }
  return norm;
}

void FeedForward::add_to(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
                         const RmsNormParams& next, const LinearWeight* reader) {
  const Range range(context_, layer.moe ? "mixture_of_experts" : "feed_forward");
  layer.moe ? mixture(h, layer, rows, stream, next, reader) : dense(h, layer, rows, stream, next, reader);
}

FeedForward::Network FeedForward::network(const FeedForwardWeights& weights, const Operand& x,
                                          const ConstMatrix& residual, const Matrix& out, const Extent& rows) const {
  const Matrix gate_up = reshape(gate_up_, rows.capacity, 2 * weights.width);
  Operand hidden = reshape(hidden_, rows.capacity, weights.width);
  hidden.static_scale = weights.gate_up.get()->static_scale;
  const LinearParams first{
      .x = x, .weight = weights.gate_up.get(), .bias = weights.gate_up.bias_data(), .y = gate_up, .rows = rows};
  return {.first = first,
          .second = {.input = SwigluParams{.gate_up = gate_up,
                                           .width = weights.width,
                                           .y = values_of(hidden),
                                           .quantized = codes_of(hidden),
                                           .rows = rows},
                     .product = {.x = hidden,
                                 .weight = weights.down.get(),
                                 .bias = weights.down.bias_data(),
                                 .residual = residual,
                                 .y = out,
                                 .rows = rows}},
          .first_with_activation = {.x = x,
                                    .weight = first.weight,
                                    .bias = first.bias,
                                    .width = weights.width,
                                    .gate_up = gate_up,
                                    .y = values_of(hidden),
                                    .quantized = codes_of(hidden),
                                    .rows = rows}};
}

// Few rows: each product makes its input. Many: the first product ends with the activation.
void FeedForward::dense(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
                        const RmsNormParams& next, const LinearWeight* reader) {
  const Network parts = network(layer.dense, x_, h, h, rows);
  const RmsNormParams input = norm(h, layer, rows);
  if (prepared_at_once(context_, parts.second)) {
    stream.multiply(input, parts.first);
    return stream.add(parts.second);
  }
  stream.make(input, parts.first.weight);
  LinearSwigluParams first = parts.first_with_activation;
  first.x = stream.made(first.x);
  linear_swiglu(context_, first);
  stream.add(parts.second.product, next, reader);
}

void FeedForward::shared(OpContext& context, const FeedForwardWeights& weights, const Operand& x, const Extent& rows) {
  const Matrix out = reshape(shared_out_, rows.capacity, model_.config().hidden_size);
  const Network parts = network(weights, x, {}, out, rows);
  if (prepared_at_once(context, parts.second)) {
    linear(context, parts.first);
    return prepared_linear(context, parts.second);
  }
  linear_swiglu(context, parts.first_with_activation);
  linear(context, parts.second.product);
}

FeedForward::SortedRows FeedForward::sorted_rows(std::int64_t rows) const {
  const OneRecV2Config& config = model_.config();
  const std::int64_t experts = config.n_routed_experts;
  const std::int64_t top_k = config.num_experts_per_tok;
  const std::int64_t alignment = context_.backend.grouped_alignment(rows, experts, top_k);
  return {alignment, sorted_capacity(rows, experts, top_k, alignment)};
}

void FeedForward::experts(const FeedForwardWeights& weights, const SortedRows& sorted) {
  const Extent extent{sorted.capacity, offsets_ + model_.config().n_routed_experts};
  const GatherRowsParams gather{.x = expert_x_, .sources = sources_, .sorted = sorted_x_, .sorted_rows = extent};
  const GroupedLinearParams second{.x = sorted_hidden_,
                                   .weight = weights.down.get(),
                                   .offsets = offsets_,
                                   .y = sorted_out_,
                                   .rows_capacity = sorted.capacity,
                                   .alignment = sorted.alignment};
  if (sorted_hidden_.scale_kind == ScaleKind::kPerBlock) {
    return routed_feed_forward(context_, {.gather = gather,
                                          .first = {.x = sorted_x_,
                                                    .weight = weights.gate_up.get(),
                                                    .offsets = offsets_,
                                                    .width = weights.width,
                                                    .gate_up = sorted_gate_up_,
                                                    .quantized = sorted_hidden_,
                                                    .rows_capacity = sorted.capacity,
                                                    .alignment = sorted.alignment},
                                          .second = second});
  }
  gather_rows(context_, gather);
  grouped_linear(context_, {.x = sorted_x_,
                            .weight = weights.gate_up.get(),
                            .offsets = offsets_,
                            .y = sorted_gate_up_,
                            .rows_capacity = sorted.capacity,
                            .alignment = sorted.alignment});
  swiglu(context_, {.gate_up = sorted_gate_up_,
                    .width = weights.width,
                    .y = values_of(sorted_hidden_),
                    .quantized = codes_of(sorted_hidden_),
                    .rows = extent});
  grouped_linear(context_, second);
}

void FeedForward::mixture(const Matrix& h, const LayerWeights& layer, const Extent& rows, ResidualStream& stream,
                          const RmsNormParams& next, const LinearWeight* reader) {
  const OneRecV2Config& config = model_.config();
  const std::int64_t d = config.hidden_size;
  const std::int64_t top_k = config.num_experts_per_tok;
  const SortedRows sorted = sorted_rows(rows.capacity);
  const bool has_shared = layer.shared.width > 0;

  stream.make(norm(h, layer, rows), nullptr);
  // Until the join only the network touches gate_up_, hidden_ and shared_out_, and both sides only read the norm's
  // outputs.
  std::optional<Fork> fork;
  if (has_shared && rows.capacity <= kMostRowsBeside && context_.tap == nullptr) {
    fork.emplace(context_);
    shared(fork->context(), layer.shared, shared_x(), rows);
  }
  linear_route(
      context_,
      {.product = {.x = {.values = router_x_}, .weight = layer.router.get(), .y = router_logits_, .rows = rows},
       .route = {.logits = router_logits_,
                 .bias = layer.router_bias->floats(),
                 .experts = config.n_routed_experts,
                 .top_k = top_k,
                 .score = config.scoring,
                 .normalize = config.normalize,
                 .scaling_factor = config.routed_scaling_factor,
                 .alignment = sorted.alignment,
                 .selected = selected_,
                 .weights = weights_,
                 .offsets = offsets_,
                 .slots = slots_,
                 .sources = sources_,
                 .rows = rows}});
  experts(layer.experts, sorted);
  if (fork) {
    fork->join();
  } else if (has_shared) {
    shared(context_, layer.shared, shared_x(), rows);
  }
  stream.add(MoeCombineParams{.expert_out = sorted_out_,
                              .slots = slots_,
                              .weights = weights_,
                              .top_k = top_k,
                              .shared = has_shared ? reshape(shared_out_, rows.capacity, d) : Matrix{},
                              .h = h,
                              .rows = rows},
             next, reader);
}

}  // namespace onerec
