// The tensors of OneRec-V2 and what they are fused into. Names and shapes: docs/checkpoint_format.md.
#pragma once

#include <memory>
#include <vector>

#include "model/onerec_v2_config.h"
#include "model/weight_table.h"

namespace onerec {

// A linear with its bias; filled while loading.
struct LinearLayer {
  const std::unique_ptr<LinearWeight>* weight = nullptr;
  const DeviceArray* bias = nullptr;  // null: none
  std::int64_t outputs = 0;           // padded

  const LinearWeight* get() const { return weight->get(); }
  const float* bias_data() const { return bias == nullptr ? nullptr : bias->floats(); }
};

struct FeedForwardWeights {
  std::int64_t width = 0;  // of the intermediate, padded
  LinearLayer gate_up;     // [2 * width, d]: gate above up
  LinearLayer down;        // [d, width]
};

struct LayerWeights {
  const DeviceArray* cross_norm = nullptr;
  LinearLayer cross_q;
  const DeviceArray* cross_q_norm = nullptr;  // null without qk_norm
  LinearLayer cross_o;
  const DeviceArray* self_norm = nullptr;
  LinearLayer self_qkv;  // q above k above v
  const DeviceArray* self_q_norm = nullptr;
  const DeviceArray* self_k_norm = nullptr;
  LinearLayer self_o;
  const DeviceArray* ffn_norm = nullptr;
  bool moe = false;
  FeedForwardWeights dense;  // of a dense layer
  LinearLayer router;        // the rest of a MoE layer
  const DeviceArray* router_bias = nullptr;
  FeedForwardWeights experts;
  FeedForwardWeights shared;  // width 0: none
};

struct PathwayWeights {
  std::int64_t input_width = 0;            // of the concatenation, padded
  std::vector<const DeviceArray*> fields;  // one per categorical field
  std::vector<LinearLayer> projections;
  const DeviceArray* positions = nullptr;
};

struct OneRecV2Weights {
  OneRecV2Weights(const OneRecV2Config& config, const Precision& precision, WeightTable& table);

  const DeviceArray* bos = nullptr;
  std::vector<const DeviceArray*> tokens;  // of levels 0 .. levels - 2
  const DeviceArray* positions = nullptr;  // [levels, d]
  std::vector<LayerWeights> layers;
  std::vector<const DeviceArray*> output_norms;
  std::vector<LinearLayer> heads;
  std::vector<const DeviceArray*> semantic_ids;  // context embeddings, one per level
  std::vector<PathwayWeights> pathways;
  std::vector<const DeviceArray*> k_norms;
  std::vector<const DeviceArray*> v_norms;  // empty with S_kv = 1
};

}  // namespace onerec
