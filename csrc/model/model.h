// What the engine needs of a model family: how one search is issued as ops. A family composes ops and holds no device
// code.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/arena.h"
#include "model/weight_table.h"
#include "ops/backend.h"

namespace onerec {

// What the arrays of a batch have to agree with.
struct InputSchema {
  struct Pathway {
    bool items = false;
    std::int64_t max_tokens = 0;               // rows of the position table
    std::vector<std::int64_t> num_embeddings;  // per categorical field
    std::int64_t dense_columns = 0;

    std::int64_t num_categorical() const { return static_cast<std::int64_t>(num_embeddings.size()); }
  };
  std::vector<Pathway> pathways;
  std::vector<std::int64_t> codebook_sizes;

  int levels() const { return static_cast<int>(codebook_sizes.size()); }
};

// The capacities that a plan is made for. What is live is read from device memory when the plan runs.
struct PassShape {
  std::int64_t batch = 0;
  std::vector<std::int64_t> rows;            // of each step; rows[0] = batch
  std::int64_t max_request_rows = 0;         // of one request at any step
  std::vector<std::int64_t> pathway_tokens;  // of each context pathway
  std::int64_t context_tokens = 0;           // of all pathways and requests together
  std::int64_t max_request_tokens = 0;

  auto operator<=>(const PassShape&) const = default;
};

// The inputs of one context pathway, in device memory.
struct PathwayInputs {
  const std::int32_t* codes = nullptr;        // [tokens, levels]
  const std::int32_t* positions = nullptr;    // [tokens]: row of the position table
  const std::int32_t* rows = nullptr;         // [tokens]: row in the packed context
  const std::int32_t* categorical = nullptr;  // [tokens, fields]
  const float* dense = nullptr;               // [tokens, columns]
  const std::int32_t* count = nullptr;        // live tokens
};

// Everything a pass reads, and one word that it writes, in device memory; step t has the rows [0, *row_count[t]).
struct PassInputs {
  std::vector<PathwayInputs> pathways;
  const std::int32_t* context_offsets = nullptr;  // [batch + 1]
  std::vector<const std::int32_t*> row_offsets;   // [step][batch + 1]
  std::vector<const std::int32_t*> row_count;     // [step]
  std::vector<const std::int32_t*> codes;         // [step][rows, levels]: the codes chosen before the step; [0] unused
  std::vector<std::array<const std::int32_t*, kMaxLevels>> ancestry;  // [step][earlier step][rows]
  std::int32_t* overflowed = nullptr;  // set to 1 where the pass is to be repeated without OpContext::pending_norms
};

// Bytes by purpose, for the memory plan.
using MemoryLedger = std::map<std::string, std::size_t>;

// One search as a sequence of ops over one arena. Its buffers live as long as the arena's block.
class ModelPass {
 public:
  virtual ~ModelPass() = default;
  // Issues the work that does not depend on the beams.
  virtual void encode_context() = 0;
  // Issues step t and returns its logits: [rows, >= codebook size], FP32.
  virtual ConstMatrix decode_step(int step) = 0;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual WeightTable& weights() = 0;
  virtual const WeightTable& weights() const = 0;
  virtual const InputSchema& schema() const = 0;
  // Lays the pass's buffers out in `arena`, adding their sizes to `ledger`.
  virtual std::unique_ptr<ModelPass> make_pass(const PassShape& shape, const PassInputs& inputs, OpContext& context,
                                               Arena& arena, MemoryLedger& ledger) const = 0;
};

}  // namespace onerec
