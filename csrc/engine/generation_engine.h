// A model on a device with its catalogue and plans: batches in, ranked beams out.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/generation_plan.h"

namespace onerec {

struct EngineOptions {
  BatchLimits limits;
  std::size_t memory_limit = 0;  // bytes of weights, catalogue and arena together; 0: what the device has
  // To measure what they are worth: kernels that do several ops at once, and work that begins before the work ahead of
  // it has ended.
  bool fused = true;
  bool overlapped = true;
};

// Bytes in use, or needed.
struct MemoryPlan {
  std::size_t weights = 0;
  std::size_t catalogue = 0;
  std::size_t arena = 0;
  std::size_t pinned = 0;
  MemoryLedger arena_ledger;  // of the largest plan

  std::size_t total() const { return weights + catalogue + arena + pinned; }
};

// All members may be called from any thread; runs take turns.
class GenerationEngine {
 public:
  GenerationEngine(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model, EngineOptions options);
  ~GenerationEngine();

  // Loading: every tensor of weights().specs() in that order, then finish_loading().
  const WeightTable& weights() const { return model_->weights(); }
  void set_tensor(const std::string& name, const TensorSource& source);
  void finish_loading();

  const InputSchema& schema() const { return model_->schema(); }
  // Replaces the catalogue. `semantic_ids` [items, levels]. Returns the items' order in the trie and the leaves' ranges
  // in it.
  void set_catalogue(const std::int32_t* semantic_ids, std::int64_t items);
  const ItemTrie* catalogue() const { return trie_.get(); }

  // Throws ArgumentError for a batch that check_batch refuses, PlanMemoryError for one whose plan does not fit,
  // DeviceError if the device fails; after that, always.
  void run(const Batch& batch, BatchResult& result);
  // The same op by op instead of from the recording; `tap` may be null.
  void run_directly(const Batch& batch, BatchResult& result, OperandTap* tap);

  // Makes and records the plan that run(batch) would use, and runs nothing.
  void prepare(const Batch& batch);

  MemoryPlan memory_plan() const;
  // What the engine would take with the plan of `batch`, which is not made.
  MemoryPlan plan_for(const Batch& batch) const;
  // Fills the arena with `value`: whatever a search reads it must have written. For tests.
  void poison(int value);

 private:
  template <class Work>
  void run_guarded(Work&& work);
  GenerationPlan& plan(const Batch& batch);
  void grow_arena(const PlanFootprint& footprint);
  void drop_plans();
  std::string device_memory_shortage(const PlanFootprint& footprint) const;

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  const EngineOptions options_;
  std::unique_ptr<ItemTrie> trie_;
  bool loaded_ = false;
  std::string failure_;  // of the device; empty while it works
  mutable std::mutex mutex_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Buffer> arena_;
  MemoryLedger arena_ledger_;
  struct Slot {
    std::unique_ptr<GenerationPlan> plan;
    std::list<PlanShape>::iterator use;
  };
  std::map<PlanShape, Slot> plans_;
  std::list<PlanShape> recently_used_;  // most recent first
};

}  // namespace onerec
