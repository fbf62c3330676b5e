#include "model/onerec_v2_decoder.h"

#include <algorithm>

namespace onerec {
namespace {

constexpr std::array<const char*, kMaxLevels> kStepNames = {"step 0", "step 1", "step 2", "step 3",
                                                            "step 4", "step 5", "step 6", "step 7"};

// Values of the residual stream up to which ops are short: measured, see profiling/NOTES.md.
constexpr std::int64_t kMostShortValues = std::int64_t{4} << 20;

Matrix first_rows(Matrix matrix, std::int64_t rows) {
  matrix.rows = rows;
  return matrix;
}

Operand first_rows(Operand operand, std::int64_t rows) {
  operand.values.rows = rows;
  return operand;
}

}  // namespace

OneRecV2Pass::OneRecV2Pass(const OneRecV2& model, const PassShape& shape, const PassInputs& inputs, OpContext& context,
                           PassMemory memory)
    : model_(model),
      shape_(shape),
      inputs_(inputs),
      context_(context),
      memory_(memory),
      context_processor_(model, shape_, context, memory_),
      feed_forward_(model, shape.rows, context, memory_),
      stream_(context, memory_, *std::max_element(shape.rows.begin(), shape.rows.end()),
              scale_kind_for(model.precision().linear) == ScaleKind::kPerRow, inputs.overflowed) {
  const OneRecV2Config& config = model.config();
  const DType dtype = model.precision().activation;
  const ScaleKind kind = scale_kind_for(model.precision().linear);
  const std::int64_t rows = *std::max_element(shape.rows.begin(), shape.rows.end());
  h_ = memory_.matrix("activations", dtype, rows, config.hidden_size);
  x_ = memory_.operand("activations", kind, dtype, rows, config.hidden_size);
  q_ = memory_.matrix("activations", dtype, rows, config.d_attention());
  attended_ = memory_.matrix("activations", dtype, rows, config.d_attention());
  attended_x_ = kind == ScaleKind::kNone ? Operand{.values = attended_}
                                         : memory_.operand("activations", kind, dtype, rows, config.d_attention());
  head_x_ = memory_.matrix("activations", dtype, rows, config.hidden_size);
  std::int64_t widest = 0;
  for (const auto& head : model.tensors().heads) widest = std::max(widest, head.outputs);
  logits_ = memory_.matrix("logits", DType::kF32, rows, widest);

  const int levels = config.levels();
  for (int t = 0; t < levels; ++t) {
    auto& layers = qkv_.emplace_back();
    const std::int64_t step_rows = shape.rows[static_cast<std::size_t>(t)];
    for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
      const bool shared = t + 1 == levels && l > 0;
      layers.push_back(shared ? layers.front() : memory_.matrix("self_kv", dtype, step_rows, config.d_qkv()));
    }
  }
}

ConstMatrix OneRecV2Pass::decode_step(int step) {
  const OneRecV2Config& config = model_.config();
  const OneRecV2Weights& weights = model_.tensors();
  const auto t = static_cast<std::size_t>(step);
  const Extent rows{shape_.rows[t], inputs_.row_count[t]};
  const Matrix h = first_rows(h_, rows.capacity);
  const Range range(context_, kStepNames[t]);
  if (!context_.measuring) context_.stream.expect_long_work(rows.capacity * config.hidden_size > kMostShortValues);

  const DeviceArray* table = step == 0 ? weights.bos : weights.tokens[t - 1];
  const void* position = nullptr;
  if (weights.positions != nullptr) {
    position = static_cast<const std::byte*>(weights.positions->data()) +
               t * static_cast<std::size_t>(config.hidden_size) * size_of(h.dtype);
  }
  embed_step(context_, {.table = table->data(),
                        .table_rows = step == 0 ? 1 : config.codebook_sizes[t - 1],
                        .codes = step == 0 ? nullptr : inputs_.codes[t] + (step - 1),
                        .code_stride = config.levels(),
                        .position = position,
                        .h = h,
                        .rows = rows});
  stream_.begin();
  const Operand x = first_rows(x_, rows.capacity);
  const Operand head_x{.values = first_rows(head_x_, rows.capacity)};
  const RmsNormParams head_norm = norm(h, weights.output_norms[t], head_x, rows);
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) {
    const LayerWeights& layer = weights.layers[static_cast<std::size_t>(l)];
    const Range layer_range(context_, "layer");
    const bool last = l + 1 == config.num_hidden_layers;
    const RmsNormParams behind =
        last ? head_norm : norm(h, weights.layers[static_cast<std::size_t>(l + 1)].cross_norm, x, rows);
    cross_attention_block(layer, l, step, h, rows);
    self_attention_block(layer, l, step, h, rows);
    const LinearWeight* reader = last ? nullptr : weights.layers[static_cast<std::size_t>(l + 1)].cross_q.get();
    feed_forward_.add_to(h, layer, rows, stream_, behind, reader);
  }
  const Range head_range(context_, "head");
  const LinearLayer& head = weights.heads[t];
  // Each level's logits are packed at its own width.
  const Matrix logits{logits_.data, DType::kF32, rows.capacity, head.outputs, head.outputs};
  project_norm(head_norm, head_x, head, logits);
  return logits;
}

void OneRecV2Pass::cross_attention_block(const LayerWeights& layer, std::int64_t index, int step, const Matrix& h,
                                         const Extent& rows) {
  const OneRecV2Config& config = model_.config();
  const Range range(context_, "cross_attention");
  const Operand x = first_rows(x_, rows.capacity);
  const Matrix q = first_rows(q_, rows.capacity);
  const Matrix attended = first_rows(attended_, rows.capacity);
  project_norm(norm(h, layer.cross_norm, x, rows), x, layer.cross_q, q);
  if (layer.cross_q_norm != nullptr) head_norm(q, layer.cross_q_norm, config.num_attention_heads, rows);
  const std::int64_t group = config.context_kv_layer(index);
  CrossAttentionParams params{.q = q,
                              .k = context_processor_.keys(group),
                              .v = context_processor_.values(group),
                              .context_offsets = inputs_.context_offsets,
                              .row_offsets = inputs_.row_offsets[static_cast<std::size_t>(step)],
                              .out = attended,
                              .batch = shape_.batch,
                              .rows_capacity = rows.capacity,
                              .tokens_capacity = shape_.context_tokens,
                              .max_request_rows = step == 0 ? 1 : shape_.max_request_rows,
                              .max_request_tokens = shape_.max_request_tokens,
                              .heads = config.num_attention_heads,
                              .kv_heads = config.num_context_kv_heads,
                              .head_dim = config.head_dim,
                              .scale = config.attention_scale,
                              .settled = true};
  Operand codes = first_rows(attended_x_, rows.capacity);
  codes.static_scale = context_processor_.values_scale(group);
  const LinearParams product = output_product(codes, layer.cross_o, h, rows);
  const RmsNormParams next = norm(h, layer.self_norm, x, rows);
  const QuantizeParams quantizer{.x = attended, .quantized = codes, .rows = rows};
  // Codes come with the attention, unless the product would rather make them itself.
  if (codes.quantized() && !prepared_at_once(context_, {.input = quantizer, .product = product})) {
    params.quantized = codes;
    cross_attention(context_, params);
    return stream_.add(product, next, layer.self_qkv.get());
  }
  cross_attention(context_, params);
  project_out(attended, layer.cross_o, h, rows, next, layer.self_qkv.get());
}

void OneRecV2Pass::self_attention_block(const LayerWeights& layer, std::int64_t index, int step, const Matrix& h,
                                        const Extent& rows) {
  const OneRecV2Config& config = model_.config();
  const auto t = static_cast<std::size_t>(step);
  const auto l = static_cast<std::size_t>(index);
  const Range range(context_, "self_attention");
  const Operand x = first_rows(x_, rows.capacity);
  const Matrix qkv = qkv_[t][l];
  // Attention over a single key is its value, whatever the query.
  const bool single_key = step == 0 && config.num_attention_heads == config.num_key_value_heads;
  project_norm(norm(h, layer.self_norm, x, rows), x, layer.self_qkv, qkv, single_key ? config.d_attention() : 0);
  if (layer.self_q_norm != nullptr) {
    const std::int64_t kv = config.num_key_value_heads * config.head_dim;
    const Matrix q = qkv.columns(0, config.d_attention());
    if (!single_key) head_norm(q, layer.self_q_norm, config.num_attention_heads, rows);
    head_norm(qkv.columns(config.d_attention(), kv), layer.self_k_norm, config.num_key_value_heads, rows);
  }
  const RmsNormParams next = feed_forward_.norm(h, layer, rows);
  const LinearWeight* reader = FeedForward::reader(layer);
  if (single_key) {
    return project_out(qkv.columns(2 * config.d_attention(), config.d_attention()), layer.self_o, h, rows, next,
                       reader);
  }
  const Operand attended = first_rows(attended_x_, rows.capacity);
  SelfAttentionParams params{.step = step,
                             .out = values_of(attended),
                             .quantized = codes_of(attended),
                             .heads = config.num_attention_heads,
                             .kv_heads = config.num_key_value_heads,
                             .head_dim = config.head_dim,
                             .scale = config.attention_scale,
                             .rows = rows,
                             .settled = true};
  for (std::size_t s = 0; s <= t; ++s) params.qkv[s] = qkv_[s][l];
  if (step > 0) {
    for (std::size_t s = 0; s < t; ++s) params.ancestry[s] = inputs_.ancestry[t][s];
  }
  self_attention(context_, params);
  stream_.add(output_product(attended, layer.self_o, h, rows), next, reader);
}

RmsNormParams OneRecV2Pass::norm(const Matrix& h, const DeviceArray* gamma, const Operand& x,
                                 const Extent& rows) const {
  return {.x = h,
          .gamma = gamma->floats(),
          .width = model_.config().hidden_size,
          .eps = model_.config().rms_norm_eps,
          .gamma_magnitude = gamma->magnitude,
          .y = values_of(x),
          .quantized = codes_of(x),
          .rows = rows};
}

void OneRecV2Pass::project_norm(const RmsNormParams& norm, const Operand& x, const LinearLayer& layer, const Matrix& y,
                                std::int64_t unread) {
  stream_.multiply(
      norm, {.x = x, .weight = layer.get(), .bias = layer.bias_data(), .y = y, .unread = unread, .rows = norm.rows});
}

void OneRecV2Pass::project_out(const Matrix& attended, const LinearLayer& layer, const Matrix& h, const Extent& rows,
                               const RmsNormParams& next, const LinearWeight* reader) {
  const Operand x = first_rows(attended_x_, rows.capacity);
  if (!x.quantized()) return stream_.add(output_product({.values = attended}, layer, h, rows), next, reader);
  const PreparedLinearParams prepared{.input = QuantizeParams{.x = attended, .quantized = x, .rows = rows},
                                      .product = output_product(x, layer, h, rows)};
  if (prepared_at_once(context_, prepared)) return stream_.add(prepared);
  quantize(context_, {.x = attended, .quantized = x, .rows = rows});
  stream_.add(prepared.product, next, reader);
}

void OneRecV2Pass::head_norm(const Matrix& x, const DeviceArray* gamma, std::int64_t heads, const Extent& rows) {
  rms_norm(context_, {.x = x,
                      .gamma = gamma->floats(),
                      .width = model_.config().head_dim,
                      .groups = heads,
                      .eps = model_.config().rms_norm_eps,
                      .y = x,
                      .rows = rows});
}

LinearParams OneRecV2Pass::output_product(const Operand& attended, const LinearLayer& layer, const Matrix& h,
                                          const Extent& rows) {
  return {.x = attended, .weight = layer.get(), .bias = layer.bias_data(), .residual = h, .y = h, .rows = rows};
}

}  // namespace onerec
