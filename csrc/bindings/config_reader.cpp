#include "bindings/config_reader.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace onerec::bindings {
namespace {

namespace py = pybind11;

template <class T>
void read(const py::dict& from, const char* name, T& to) {
  to = from[name].cast<T>();
}

PathwayConfig read_pathway(const py::dict& raw) {
  PathwayConfig pathway;
  read(raw, "name", pathway.name);
  pathway.items = raw["kind"].cast<std::string>() == "items";
  read(raw, "max_tokens", pathway.max_tokens);
  pathway.positions = raw["position_embedding"].cast<std::string>() != "none";
  read(raw, "hidden_sizes", pathway.hidden_sizes);
  read(raw, "negative_slope", pathway.negative_slope);
  read(raw, "bias", pathway.bias);
  for (const auto& entry : raw["fields"]) {
    const auto field = entry.cast<py::dict>();
    PathwayField& out = pathway.fields.emplace_back();
    read(field, "name", out.name);
    out.categorical = field["kind"].cast<std::string>() == "categorical";
    if (out.categorical) read(field, "num_embeddings", out.num_embeddings);
    read(field, out.categorical ? "embedding_dim" : "dim", out.width);
  }
  return pathway;
}

}  // namespace

OneRecV2Config read_config(const py::dict& raw) {
  OneRecV2Config config;
  read(raw, "codebook_sizes", config.codebook_sizes);
  read(raw, "hidden_size", config.hidden_size);
  read(raw, "num_hidden_layers", config.num_hidden_layers);
  read(raw, "num_attention_heads", config.num_attention_heads);
  read(raw, "num_key_value_heads", config.num_key_value_heads);
  read(raw, "head_dim", config.head_dim);
  read(raw, "intermediate_size", config.intermediate_size);
  read(raw, "rms_norm_eps", config.rms_norm_eps);
  read(raw, "num_context_kv_layers", config.num_context_kv_layers);
  read(raw, "context_kv_split", config.context_kv_split);
  read(raw, "num_context_kv_heads", config.num_context_kv_heads);
  read(raw, "attention_scale", config.attention_scale);
  read(raw, "qk_norm", config.qk_norm);
  read(raw, "attention_bias", config.attention_bias);
  read(raw, "mlp_bias", config.mlp_bias);
  read(raw, "lm_head_bias", config.lm_head_bias);
  config.learned_positions = raw["decoder_position_embedding"].cast<std::string>() == "learned";
  read(raw, "n_routed_experts", config.n_routed_experts);
  read(raw, "n_shared_experts", config.n_shared_experts);
  read(raw, "num_experts_per_tok", config.num_experts_per_tok);
  read(raw, "moe_intermediate_size", config.moe_intermediate_size);
  read(raw, "first_k_dense_replace", config.first_k_dense_replace);
  config.scoring = raw["scoring_func"].cast<std::string>() == "softmax" ? RouterScore::kSoftmax : RouterScore::kSigmoid;
  config.normalize = raw["norm_topk_prob"].cast<bool>() ? RouterNormalize::kSum : RouterNormalize::kNone;
  read(raw, "routed_scaling_factor", config.routed_scaling_factor);
  read(raw, "embed_dim", config.embed_dim);
  for (const auto& entry : raw["pathways"]) config.pathways.push_back(read_pathway(entry.cast<py::dict>()));
  return config;
}

}  // namespace onerec::bindings
