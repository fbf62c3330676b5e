// OneRec-V2 (arXiv 2508.20900): a lazy decoder over one shared context.
#pragma once

#include <memory>

#include "model/model.h"
#include "model/onerec_v2_config.h"
#include "model/onerec_v2_weights.h"

namespace onerec {

class OneRecV2 final : public Model {
 public:
  OneRecV2(OneRecV2Config config, Precision precision, Backend& backend);

  const OneRecV2Config& config() const { return config_; }
  const Precision& precision() const { return precision_; }
  const OneRecV2Weights& tensors() const { return weights_; }

  WeightTable& weights() override { return table_; }
  const WeightTable& weights() const override { return table_; }
  const InputSchema& schema() const override { return schema_; }
  std::unique_ptr<ModelPass> make_pass(const PassShape& shape, const PassInputs& inputs, OpContext& context,
                                       Arena& arena, MemoryLedger& ledger) const override;

 private:
  OneRecV2Config config_;
  Precision precision_;
  InputSchema schema_;
  WeightTable table_;
  OneRecV2Weights weights_;
};

}  // namespace onerec
