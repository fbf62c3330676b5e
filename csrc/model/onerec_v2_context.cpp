#include "model/onerec_v2_context.h"

#include <algorithm>

#include "model/static_scale.h"

namespace onerec {

ContextProcessor::ContextProcessor(const OneRecV2& model, const PassShape& shape, OpContext& context,
                                   PassMemory& memory)
    : model_(model),
      shape_(shape),
      context_(context),
      split_(model.config().context_kv_split),
      width_(model.config().d_context_kv()) {
  const DType dtype = model.precision().activation;
  rows_ = memory.matrix("context_kv", dtype, shape.context_tokens, model.config().d_context());

  // The stages of all pathways share two buffers, which a chain of linears uses in turn.
  std::int64_t largest = 0;
  for (std::size_t p = 0; p < shape.pathway_tokens.size(); ++p) {
    const PathwayWeights& weights = model.tensors().pathways[p];
    std::int64_t widest = weights.input_width;
    for (const auto& projection : weights.projections) {
      // Declared shapes are known before loading; the packed weight is not there yet when only a plan is asked for.
      widest = std::max(widest, projection.outputs);
    }
    largest = std::max(largest, widest * shape.pathway_tokens[p]);
  }
  const Matrix buffers[2] = {memory.matrix("activations", dtype, 1, largest),
                             memory.matrix("activations", dtype, 1, largest)};
  for (std::size_t p = 0; p < shape.pathway_tokens.size(); ++p) {
    const PathwayWeights& weights = model.tensors().pathways[p];
    auto& stages = stages_.emplace_back();
    std::int64_t width = weights.input_width;
    for (std::size_t i = 0; i <= weights.projections.size(); ++i) {
      stages.push_back({buffers[i % 2].data, dtype, shape.pathway_tokens[p], width, width});
      if (i < weights.projections.size()) width = weights.projections[i].outputs;
    }
  }
}

float ContextProcessor::values_scale(std::int64_t group) const {
  const OneRecV2Weights& weights = model_.tensors();
  const auto& norms = split_ == 2 ? weights.v_norms : weights.k_norms;
  return attention_static_scale(norms[static_cast<std::size_t>(group)]->values);
}

void ContextProcessor::encode(const PassInputs& inputs) {
  const Range range(context_, "context");
  if (!context_.measuring) context_.stream.expect_long_work(false);
  const OneRecV2Config& config = model_.config();
  const OneRecV2Weights& weights = model_.tensors();
  for (std::size_t p = 0; p < config.pathways.size(); ++p) {
    const PathwayConfig& pathway = config.pathways[p];
    const PathwayWeights& tensors = weights.pathways[p];
    const PathwayInputs& input = inputs.pathways[p];
    const Extent tokens{shape_.pathway_tokens[p], input.count};
    if (tokens.capacity == 0) continue;

    EmbedContextParams embed{.codes = input.codes,
                             .levels = config.levels(),
                             .categorical = input.categorical,
                             .num_categorical = pathway.num_categorical(),
                             .dense = input.dense,
                             .num_dense = pathway.num_dense(),
                             .out = stages_[p][0],
                             .tokens = tokens};
    for (int t = 0; pathway.items && t < config.levels(); ++t) {
      const auto level = static_cast<std::size_t>(t);
      embed.fields.push_back({ContextField::Kind::kSemanticId,
                              t,
                              config.embed_dim,
                              {weights.semantic_ids[level]->data(), config.codebook_sizes[level], config.embed_dim}});
    }
    std::int64_t categorical = 0;
    std::int64_t dense = 0;
    for (const auto& field : pathway.fields) {
      if (field.categorical) {
        const DeviceArray* table = tensors.fields[static_cast<std::size_t>(categorical)];
        embed.fields.push_back({ContextField::Kind::kCategorical,
                                categorical++,
                                field.width,
                                {table->data(), field.num_embeddings, field.width}});
      } else {
        embed.fields.push_back({ContextField::Kind::kDense, dense, field.width, {}});
        dense += field.width;
      }
    }
    embed_context(context_, embed);

    for (std::size_t i = 0; i < tensors.projections.size(); ++i) {
      const bool last = i + 1 == tensors.projections.size();
      linear(context_, {.x = {.values = stages_[p][i]},
                        .weight = tensors.projections[i].get(),
                        .bias = tensors.projections[i].bias_data(),
                        .y = stages_[p][i + 1],
                        .activation = last ? Activation::kNone : Activation::kLeakyRelu,
                        .negative_slope = pathway.negative_slope,
                        .rows = tokens});
    }
    EmbeddingTable positions;
    if (tensors.positions != nullptr) positions = {tensors.positions->data(), pathway.max_tokens, config.d_context()};
    scatter_context(context_, {.x = stages_[p].back(),
                               .position_table = positions,
                               .positions = input.positions,
                               .rows = input.rows,
                               .out = rows_,
                               .tokens = tokens});
  }

  const Extent tokens{shape_.context_tokens, inputs.context_offsets + shape_.batch};
  if (tokens.capacity == 0) return;
  const auto normalise = [&](std::int64_t index, const DeviceArray* gamma) {
    rms_norm(context_, {.x = slice(index),
                        .gamma = gamma->floats(),
                        .width = width_,
                        .eps = config.rms_norm_eps,
                        .y = slice(index),
                        .rows = tokens});
  };
  for (std::int64_t j = 0; j < config.num_context_kv_layers; ++j) {
    normalise(j * split_, weights.k_norms[static_cast<std::size_t>(j)]);
    if (split_ == 2) normalise(j * split_ + 1, weights.v_norms[static_cast<std::size_t>(j)]);
  }
}

}  // namespace onerec
