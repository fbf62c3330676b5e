#include "engine/generation_engine.h"

#include <sstream>

#include "core/error.h"

namespace onerec {
namespace {

// Plans share one arena; what each keeps of its own is its recording and a small pinned block.
constexpr std::size_t kMaxPlans = 64;

std::string mebibytes(std::size_t bytes) {
  std::ostringstream out;
  out.setf(std::ios::fixed);
  out.precision(1);
  out << static_cast<double>(bytes) / (1024.0 * 1024.0) << " MiB";
  return out.str();
}

}  // namespace

GenerationEngine::GenerationEngine(std::unique_ptr<Backend> backend, std::unique_ptr<Model> model,
                                   EngineOptions options)
    : backend_(std::move(backend)),
      model_(std::move(model)),
      options_(options),
      stream_(backend_->device().make_stream()) {
  stream_->overlap_work(options_.overlapped);
}

GenerationEngine::~GenerationEngine() = default;

void GenerationEngine::set_tensor(const std::string& name, const TensorSource& source) {
  const std::lock_guard lock(mutex_);
  model_->weights().set(name, source);
}

void GenerationEngine::finish_loading() {
  const std::lock_guard lock(mutex_);
  model_->weights().finish();
  loaded_ = true;
}

void GenerationEngine::set_catalogue(const std::int32_t* semantic_ids, std::int64_t items) {
  auto trie = std::make_unique<ItemTrie>(semantic_ids, items, schema().codebook_sizes, backend_->device());
  const std::lock_guard lock(mutex_);
  drop_plans();
  trie_ = std::move(trie);
}

template <class Work>
void GenerationEngine::run_guarded(Work&& work) {
  const std::lock_guard lock(mutex_);
  if (!failure_.empty()) throw DeviceError(concat("[engine] it died of an earlier failure: ", failure_));
  try {
    work();
  } catch (const DeviceError& error) {
    failure_ = error.what();
    throw;
  }
}

void GenerationEngine::run(const Batch& batch, BatchResult& result) {
  run_guarded([&] { plan(batch).run(*stream_, batch, result); });
}

void GenerationEngine::run_directly(const Batch& batch, BatchResult& result, OperandTap* tap) {
  run_guarded([&] { plan(batch).run_directly(*stream_, batch, result, tap); });
}

void GenerationEngine::prepare(const Batch& batch) {
  run_guarded([&] { plan(batch); });
}

GenerationPlan& GenerationEngine::plan(const Batch& batch) {
  if (!loaded_) throw StateError("[engine] got a batch before the weights. Load every tensor first.");
  check_batch(batch, schema(), trie_ == nullptr ? 0 : trie_->items(), options_.limits);
  const PlanShape shape = plan_shape(batch, schema().levels());
  if (const auto found = plans_.find(shape); found != plans_.end()) {
    recently_used_.splice(recently_used_.begin(), recently_used_, found->second.use);
    return *found->second.plan;
  }
  auto fresh = std::make_unique<GenerationPlan>(shape, *model_, *backend_, trie_.get(), options_.fused);
  if (arena_ == nullptr || fresh->footprint().arena > arena_->bytes()) grow_arena(fresh->footprint());
  fresh->record(*stream_, arena_->data());
  if (plans_.size() == kMaxPlans) {
    plans_.erase(recently_used_.back());
    recently_used_.pop_back();
  }
  recently_used_.push_front(shape);
  return *plans_.emplace(shape, Slot{std::move(fresh), recently_used_.begin()}).first->second.plan;
}

void GenerationEngine::grow_arena(const PlanFootprint& footprint) {
  const std::string shortage = device_memory_shortage(footprint);
  if (!shortage.empty()) throw PlanMemoryError(shortage);
  // The recordings hold addresses of the old arena.
  drop_plans();
  arena_.reset();
  arena_ = backend_->device().allocate(footprint.arena);
  arena_ledger_ = footprint.ledger;
}

std::string GenerationEngine::device_memory_shortage(const PlanFootprint& footprint) const {
  const std::size_t held = model_->weights().bytes() + (trie_ == nullptr ? 0 : trie_->bytes());
  const std::size_t current = arena_ == nullptr ? 0 : arena_->bytes();
  std::size_t room = backend_->device().available_memory() + current;
  if (options_.memory_limit > 0) room = std::min(room, options_.memory_limit > held ? options_.memory_limit - held : 0);
  if (footprint.arena <= room) return {};
  std::string parts;
  for (const auto& [purpose, bytes] : footprint.ledger)
    parts += concat(parts.empty() ? "" : ", ", purpose, " ", mebibytes(bytes));
  return concat("[plan] this batch needs ", mebibytes(footprint.arena), " (", parts, ") beside ", mebibytes(held),
                " of weights and catalogue, but ", mebibytes(room),
                " are left. Lower the batch, the beam width or the context, or raise memory_limit.");
}

void GenerationEngine::drop_plans() {
  plans_.clear();
  recently_used_.clear();
}

MemoryPlan GenerationEngine::memory_plan() const {
  const std::lock_guard lock(mutex_);
  MemoryPlan plan{.weights = model_->weights().bytes(),
                  .catalogue = trie_ == nullptr ? 0 : trie_->bytes(),
                  .arena = arena_ == nullptr ? 0 : arena_->bytes(),
                  .pinned = 0,
                  .arena_ledger = arena_ledger_};
  for (const auto& [shape, slot] : plans_) plan.pinned += slot.plan->footprint().pinned;
  return plan;
}

MemoryPlan GenerationEngine::plan_for(const Batch& batch) const {
  const std::lock_guard lock(mutex_);
  if (!loaded_) throw StateError("[engine] got a batch before the weights. Load every tensor first.");
  check_batch(batch, schema(), trie_ == nullptr ? 0 : trie_->items(), options_.limits);
  const GenerationPlan plan(plan_shape(batch, schema().levels()), *model_, *backend_, trie_.get(), options_.fused);
  return {.weights = model_->weights().bytes(),
          .catalogue = trie_ == nullptr ? 0 : trie_->bytes(),
          .arena = plan.footprint().arena,
          .pinned = plan.footprint().pinned,
          .arena_ledger = plan.footprint().ledger};
}

void GenerationEngine::poison(int value) {
  const std::lock_guard lock(mutex_);
  if (arena_ == nullptr) return;
  stream_->fill(arena_->data(), value, arena_->bytes());
  stream_->synchronize();
}

}  // namespace onerec
