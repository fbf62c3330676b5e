#include "model/onerec_v2_weights.h"

#include <utility>

#include "core/error.h"

namespace onerec {
namespace {

// Declares the tensors of one model in a weight table.
class Declaration {
 public:
  Declaration(const OneRecV2Config& config, const Precision& precision, WeightTable& table)
      : config_(config), precision_(precision), table_(table) {}

  const DeviceArray* vector(const std::string& name, std::int64_t length) {
    return &table_.add_vector({name}, {length}, length);
  }

  const DeviceArray* embedding(const std::string& name, std::int64_t rows, std::int64_t cols) {
    return &table_.add_table(name, rows, cols, precision_.activation);
  }

  // Tensors `names`, each `rows[i]` outputs of `inputs`, stacked.
  LinearLayer linear(const std::string& fused, const std::vector<std::string>& names,
                     const std::vector<std::int64_t>& rows, std::int64_t inputs, WeightFormat format, bool bias,
                     const DeviceArray* gated_norm = nullptr) {
    std::vector<WeightTable::Part> parts;
    std::int64_t row = 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
      parts.push_back({.name = names[i] + ".weight", .row = row, .rows = rows[i], .cols = inputs});
      row += rows[i];
    }
    const std::int64_t outputs = pad_to(row, kPadding);
    LinearLayer layer;
    layer.outputs = outputs;
    layer.weight = &table_.add_linear(fused, 1, outputs, pad_to(inputs, kPadding), format, precision_.activation, parts,
                                      bias ? nullptr : gated_norm);
    if (bias) {
      std::vector<std::string> biases;
      for (const auto& name : names) biases.push_back(name + ".bias");
      layer.bias = &table_.add_vector(biases, rows, outputs);
    }
    return layer;
  }

  LinearLayer linear(const std::string& name, std::int64_t outputs, std::int64_t inputs, WeightFormat format,
                     bool bias) {
    return linear(name, {name}, {outputs}, inputs, format, bias);
  }

  FeedForwardWeights feed_forward(const std::string& prefix, std::int64_t width, const DeviceArray* norm) {
    const std::int64_t d = config_.hidden_size;
    FeedForwardWeights ffn;
    ffn.width = width;
    ffn.gate_up = linear(prefix + "gate_up_proj", {prefix + "gate_proj", prefix + "up_proj"}, {width, width}, d,
                         precision_.linear, config_.mlp_bias, norm);
    ffn.down = linear(prefix + "down_proj", d, width, precision_.linear, config_.mlp_bias);
    return ffn;
  }

  FeedForwardWeights experts(const std::string& prefix) {
    const std::int64_t d = config_.hidden_size;
    const std::int64_t f = config_.moe_intermediate_size;
    FeedForwardWeights ffn;
    // Gate and up are quantised on their own, so in blocks of 128 outputs each starts a block.
    ffn.width = precision_.experts == WeightFormat::kFp8Block ? pad_to(f, kScaleBlock) : f;
    std::vector<WeightTable::Part> gate_up;
    std::vector<WeightTable::Part> down;
    for (std::int64_t e = 0; e < config_.n_routed_experts; ++e) {
      const std::string expert = concat(prefix, "experts.", e, ".");
      gate_up.push_back({.name = expert + "gate_proj.weight", .expert = e, .row = 0, .rows = f, .cols = d});
      gate_up.push_back({.name = expert + "up_proj.weight", .expert = e, .row = ffn.width, .rows = f, .cols = d});
      down.push_back({.name = expert + "down_proj.weight", .expert = e, .row = 0, .rows = d, .cols = f});
    }
    ffn.gate_up.weight = &table_.add_linear(prefix + "experts.gate_up_proj", config_.n_routed_experts, 2 * ffn.width, d,
                                            precision_.experts, precision_.activation, gate_up);
    ffn.down.weight = &table_.add_linear(prefix + "experts.down_proj", config_.n_routed_experts, d, ffn.width,
                                         precision_.experts, precision_.activation, down);
    return ffn;
  }

  LayerWeights layer(std::int64_t index) {
    const std::int64_t d = config_.hidden_size;
    const std::int64_t kv = config_.num_key_value_heads * config_.head_dim;
    const bool bias = config_.attention_bias;
    const std::string prefix = concat("model.layers.", index, ".");
    LayerWeights w;
    w.cross_norm = vector(prefix + "cross_attn_norm.weight", d);
    w.cross_q = linear(prefix + "cross_attn.q_proj", config_.d_attention(), d, precision_.linear, bias);
    if (config_.qk_norm) w.cross_q_norm = vector(prefix + "cross_attn.q_norm.weight", config_.head_dim);
    w.cross_o = linear(prefix + "cross_attn.o_proj", d, config_.d_attention(), precision_.linear, bias);
    w.self_norm = vector(prefix + "self_attn_norm.weight", d);
    const std::string self = prefix + "self_attn.";
    w.self_qkv = linear(self + "qkv_proj", {self + "q_proj", self + "k_proj", self + "v_proj"},
                        {config_.d_attention(), kv, kv}, d, precision_.linear, bias);
    if (config_.qk_norm) {
      w.self_q_norm = vector(self + "q_norm.weight", config_.head_dim);
      w.self_k_norm = vector(self + "k_norm.weight", config_.head_dim);
    }
    w.self_o = linear(self + "o_proj", d, config_.d_attention(), precision_.linear, bias);
    w.ffn_norm = vector(prefix + "mlp_norm.weight", d);
    w.moe = config_.is_moe_layer(index);
    const std::string mlp = prefix + "mlp.";
    if (!w.moe) {
      w.dense = feed_forward(mlp, config_.intermediate_size, w.ffn_norm);
      return w;
    }
    w.router = linear(mlp + "gate", config_.n_routed_experts, d, WeightFormat::kDense, false);
    w.router_bias = vector(mlp + "gate.e_score_correction_bias", config_.n_routed_experts);
    w.experts = experts(mlp);
    if (config_.n_shared_experts > 0) {
      w.shared =
          feed_forward(mlp + "shared_experts.", config_.n_shared_experts * config_.moe_intermediate_size, w.ffn_norm);
    }
    return w;
  }

  PathwayWeights pathway(const PathwayConfig& pathway) {
    PathwayWeights w;
    const std::string prefix = concat("context.pathways.", pathway.name, ".");
    for (const auto& field : pathway.fields) {
      if (!field.categorical) continue;
      w.fields.push_back(
          embedding(concat(prefix, "fields.", field.name, ".weight"), field.num_embeddings, field.width));
    }
    std::int64_t inputs = config_.pathway_input_dim(pathway);
    w.input_width = pad_to(inputs, kPadding);
    std::vector<std::int64_t> widths = pathway.hidden_sizes;
    widths.push_back(config_.d_context());
    for (std::size_t i = 0; i < widths.size(); ++i) {
      w.projections.push_back(
          linear(concat(prefix, "proj.", i), widths[i], inputs, WeightFormat::kDense, pathway.bias));
      inputs = widths[i];
    }
    if (pathway.positions) {
      w.positions = embedding(prefix + "position_embedding.weight", pathway.max_tokens, config_.d_context());
    }
    return w;
  }

 private:
  const OneRecV2Config& config_;
  const Precision& precision_;
  WeightTable& table_;
};

}  // namespace

OneRecV2Weights::OneRecV2Weights(const OneRecV2Config& config, const Precision& precision, WeightTable& table) {
  Declaration declare(config, precision, table);
  const std::int64_t d = config.hidden_size;
  const int levels = config.levels();
  bos = &table.add_table("model.bos_embedding", 1, d, precision.activation, WeightTable::TableShape::kVector);
  for (int t = 0; t + 1 < levels; ++t) {
    tokens.push_back(declare.embedding(concat("model.token_embeddings.", t, ".weight"), config.codebook_sizes[t], d));
  }
  if (config.learned_positions) positions = declare.embedding("model.position_embedding.weight", levels, d);
  for (std::int64_t l = 0; l < config.num_hidden_layers; ++l) layers.push_back(declare.layer(l));
  for (int t = 0; t < levels; ++t) {
    output_norms.push_back(declare.vector(concat("model.output_norms.", t, ".weight"), d));
    heads.push_back(
        declare.linear(concat("lm_heads.", t), config.codebook_sizes[t], d, WeightFormat::kDense, config.lm_head_bias));
  }
  bool any_items = false;
  for (const auto& pathway : config.pathways) any_items |= pathway.items;
  for (int t = 0; any_items && t < levels; ++t) {
    semantic_ids.push_back(declare.embedding(concat("context.semantic_id_embeddings.", t, ".weight"),
                                             config.codebook_sizes[t], config.embed_dim));
  }
  for (const auto& pathway : config.pathways) pathways.push_back(declare.pathway(pathway));
  for (std::int64_t j = 0; j < config.num_context_kv_layers; ++j) {
    k_norms.push_back(declare.vector(concat("context.k_norms.", j, ".weight"), config.d_context_kv()));
    if (config.context_kv_split == 2) {
      v_norms.push_back(declare.vector(concat("context.v_norms.", j, ".weight"), config.d_context_kv()));
    }
  }
}

}  // namespace onerec
