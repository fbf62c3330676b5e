#include "model/onerec_v2.h"

#include "model/onerec_v2_decoder.h"

namespace onerec {
namespace {

InputSchema schema_of(const OneRecV2Config& config) {
  InputSchema schema{.pathways = {}, .codebook_sizes = config.codebook_sizes};
  for (const auto& pathway : config.pathways) {
    auto& entry = schema.pathways.emplace_back();
    entry.items = pathway.items;
    entry.max_tokens = pathway.max_tokens;
    entry.dense_columns = pathway.num_dense();
    for (const auto& field : pathway.fields) {
      if (field.categorical) entry.num_embeddings.push_back(field.num_embeddings);
    }
  }
  return schema;
}

}  // namespace

OneRecV2::OneRecV2(OneRecV2Config config, Precision precision, Backend& backend)
    : config_(std::move(config)),
      precision_(precision),
      schema_(schema_of(config_)),
      table_(backend),
      weights_(config_, precision_, table_) {}

std::unique_ptr<ModelPass> OneRecV2::make_pass(const PassShape& shape, const PassInputs& inputs, OpContext& context,
                                               Arena& arena, MemoryLedger& ledger) const {
  return std::make_unique<OneRecV2Pass>(*this, shape, inputs, context, PassMemory(arena, ledger));
}

}  // namespace onerec
