// One search over a bucket of sizes: where everything lies, and the recorded sequence of ops that does it.
#pragma once

#include <memory>
#include <optional>

#include "engine/item_trie.h"
#include "engine/plan_io.h"

namespace onerec {

// What a plan takes.
struct PlanFootprint {
  std::size_t arena = 0;   // device memory
  std::size_t pinned = 0;  // host memory
  MemoryLedger ledger;     // the arena by purpose
};

class GenerationPlan {
 public:
  // Measures. `trie` may be null: nothing is constrained then. `fused`: as in OpContext. Everything referred to
  // outlives the plan.
  GenerationPlan(PlanShape shape, const Model& model, Backend& backend, const ItemTrie* trie, bool fused);

  const PlanFootprint& footprint() const { return footprint_; }
  // Records the search on `stream`, in device memory at `arena` of footprint().arena bytes.
  void record(Stream& stream, void* arena);

  // Replays the recording for a batch of this shape, and waits for it. Allocates nothing but the result. A search that
  // overflowed is repeated op by op.
  void run(Stream& stream, const Batch& batch, BatchResult& result);
  // The same op by op, showing every linear's operand to `tap` (which may be null).
  void run_directly(Stream& stream, const Batch& batch, BatchResult& result, OperandTap* tap);

 private:
  // Runs a batch op by op and waits for it. `pending_norms`: as in OpContext.
  void issue_directly(Stream& stream, const Batch& batch, OperandTap* tap, bool pending_norms);
  // Lays everything out in `memory` and issues the search.
  PlanIo issue(OpContext& context, PlanMemory& memory, MemoryLedger& ledger) const;
  void issue_level(OpContext& context, int level, const ConstMatrix& logits, const PlanIo& io,
                   const TrieFilterParams* filter) const;
  PlanMemory bound_memory() const;
  OpContext context_for(Stream& stream, PlanMemory& memory, OperandTap* tap) const;

  const PlanShape shape_;
  const Model& model_;
  Backend& backend_;
  const ItemTrie* trie_;
  const bool fused_;
  PlanFootprint footprint_;
  std::size_t workspace_ = 0;
  std::size_t branch_workspace_ = 0;
  std::size_t input_ = 0;
  std::size_t output_ = 0;
  void* arena_ = nullptr;
  std::unique_ptr<Buffer> pinned_;
  std::optional<PlanIo> io_;
  std::unique_ptr<Recording> recording_;
};

}  // namespace onerec
