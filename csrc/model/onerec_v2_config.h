// The configuration of a OneRec-V2 model (arXiv 2508.20900); field by field the same as python/onerec_engine/config.py,
// which checks it and documents it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "ops/linear.h"
#include "ops/moe.h"

namespace onerec {

struct PathwayField {
  std::string name;
  bool categorical = false;         // else dense
  std::int64_t num_embeddings = 0;  // of a categorical field
  std::int64_t width = 0;           // columns it adds to a token's input
};

struct PathwayConfig {
  std::string name;
  bool items = false;  // tokens are catalogue items: semantic-id embeddings come first
  std::int64_t max_tokens = 1;
  bool positions = false;  // has a position table of max_tokens rows
  std::vector<std::int64_t> hidden_sizes = {};
  float negative_slope = 0.01f;
  bool bias = false;
  std::vector<PathwayField> fields = {};

  std::int64_t num_categorical() const;
  std::int64_t num_dense() const;  // dense columns, all fields together
};

struct OneRecV2Config {
  std::vector<std::int64_t> codebook_sizes;
  std::int64_t hidden_size = 0;
  std::int64_t num_hidden_layers = 0;
  std::int64_t num_attention_heads = 0;
  std::int64_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t intermediate_size = 0;
  float rms_norm_eps = 1e-6f;
  std::int64_t num_context_kv_layers = 1;
  std::int64_t context_kv_split = 1;
  std::int64_t num_context_kv_heads = 0;
  float attention_scale = 0.0f;
  bool qk_norm = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool lm_head_bias = false;
  bool learned_positions = false;
  std::int64_t n_routed_experts = 0;
  std::int64_t n_shared_experts = 0;
  std::int64_t num_experts_per_tok = 0;
  std::int64_t moe_intermediate_size = 0;
  std::int64_t first_k_dense_replace = 0;
  RouterScore scoring = RouterScore::kSigmoid;
  RouterNormalize normalize = RouterNormalize::kSum;
  float routed_scaling_factor = 1.0f;
  std::int64_t embed_dim = 0;
  std::vector<PathwayConfig> pathways;

  int levels() const { return static_cast<int>(codebook_sizes.size()); }
  std::int64_t d_attention() const { return num_attention_heads * head_dim; }
  std::int64_t d_qkv() const { return (num_attention_heads + 2 * num_key_value_heads) * head_dim; }
  std::int64_t d_context_kv() const { return num_context_kv_heads * head_dim; }
  std::int64_t d_context() const { return context_kv_split * num_context_kv_layers * d_context_kv(); }
  bool is_moe_layer(std::int64_t layer) const { return n_routed_experts > 0 && layer >= first_k_dense_replace; }
  std::int64_t context_kv_layer(std::int64_t layer) const { return layer * num_context_kv_layers / num_hidden_layers; }
  std::int64_t pathway_input_dim(const PathwayConfig& pathway) const;
};

// How values are stored and multiplied; docs/numerics.md has the whole table.
struct Precision {
  DType activation = DType::kF32;               // kF32 or kBF16
  WeightFormat linear = WeightFormat::kDense;   // of the decoder's linears
  WeightFormat experts = WeightFormat::kDense;  // of the routed experts

  // "fp32", "bf16" or "fp8"; `experts` is "block" or "channel" and matters for "fp8" alone.
  static Precision parse(const std::string& precision, const std::string& experts);
};

// Ops see every width as a multiple of this; checkpoints do not. The difference is zeros.
inline constexpr std::int64_t kPadding = 16;

constexpr std::int64_t pad_to(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace onerec
