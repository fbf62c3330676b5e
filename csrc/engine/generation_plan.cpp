#include "engine/generation_plan.h"

#include "core/error.h"

namespace onerec {

GenerationPlan::GenerationPlan(PlanShape shape, const Model& model, Backend& backend, const ItemTrie* trie, bool fused)
    : shape_(std::move(shape)), model_(model), backend_(backend), trie_(trie), fused_(fused) {
  const auto stream = backend.device().make_stream();
  OpContext context{.backend = backend, .stream = *stream, .measuring = true, .fused = fused};
  PlanMemory memory;
  issue(context, memory, footprint_.ledger);
  workspace_ = align_up(context.workspace_needed);
  branch_workspace_ = align_up(context.branch_workspace_needed);
  input_ = align_up(memory.input.peak());
  output_ = align_up(memory.output.peak());
  footprint_.ledger["workspace"] = workspace_ + branch_workspace_;
  footprint_.arena = memory.device.peak() + workspace_ + branch_workspace_;
  footprint_.pinned = input_ + output_;
}

PlanMemory GenerationPlan::bound_memory() const {
  auto* pinned = static_cast<std::byte*>(pinned_->data());
  return {.device = Arena(arena_, footprint_.arena),
          .input = Arena(pinned, input_),
          .output = Arena(pinned + input_, output_)};
}

OpContext GenerationPlan::context_for(Stream& stream, PlanMemory& memory, OperandTap* tap) const {
  return {.backend = backend_,
          .stream = stream,
          .workspace = {memory.device.allocate(workspace_), workspace_},
          .branch_workspace = {memory.device.allocate(branch_workspace_), branch_workspace_},
          .measuring = false,
          .workspace_needed = 0,
          .branch_workspace_needed = 0,
          .tap = tap,
          .fused = fused_};
}

void GenerationPlan::record(Stream& stream, void* arena) {
  arena_ = arena;
  pinned_ = backend_.device().allocate_pinned(footprint_.pinned);
  PlanMemory memory = bound_memory();
  OpContext context = context_for(stream, memory, nullptr);
  MemoryLedger ledger;
  stream.begin_recording();
  try {
    io_.emplace(issue(context, memory, ledger));
  } catch (...) {
    // What went wrong first is what the caller should hear of.
    try {
      stream.end_recording();
    } catch (const StateError&) {
    }
    throw;
  }
  recording_ = stream.end_recording();
}

void GenerationPlan::run(Stream& stream, const Batch& batch, BatchResult& result) {
  io_->load(batch);
  recording_->replay(stream);
  stream.synchronize();
  const bool repeat = io_->overflowed();
  if (repeat) issue_directly(stream, batch, nullptr, false);
  io_->read(batch, result);
  result.repeated = repeat;
}

void GenerationPlan::run_directly(Stream& stream, const Batch& batch, BatchResult& result, OperandTap* tap) {
  issue_directly(stream, batch, tap, true);
  const bool repeat = io_->overflowed();
  if (repeat) issue_directly(stream, batch, tap, false);
  io_->read(batch, result);
  result.repeated = repeat;
}

void GenerationPlan::issue_directly(Stream& stream, const Batch& batch, OperandTap* tap, bool pending_norms) {
  io_->load(batch);
  // The same layout code over the same memory gives the same addresses as the recording has.
  PlanMemory memory = bound_memory();
  OpContext context = context_for(stream, memory, tap);
  context.pending_norms = pending_norms;
  MemoryLedger ledger;
  issue(context, memory, ledger);
  stream.synchronize();
}

PlanIo GenerationPlan::issue(OpContext& context, PlanMemory& memory, MemoryLedger& ledger) const {
  const InputSchema& schema = model_.schema();
  PlanIo io(shape_, schema, memory, ledger);
  if (!context.measuring) io.issue_start(context.stream);

  TrieFilterParams filter;
  const bool filtered = trie_ != nullptr && shape_.excluded > 0;
  if (filtered) {
    filter = {.trie = trie_->table(),
              .levels = schema.levels(),
              .excluded = io.excluded(),
              .excluded_offsets = io.excluded_offsets(),
              .batch = shape_.pass.batch};
    for (int t = 0; t < schema.levels(); ++t) {
      filter.word_offset[static_cast<std::size_t>(t)] = filter.words;
      filter.words += (trie_->edges(t) + 31) / 32;
    }
    const std::size_t before = memory.device.used();
    filter.blocked = memory.device.allocate_array<std::uint32_t>(shape_.pass.batch * filter.words);
    ledger["filters"] += memory.device.used() - before;
    trie_filter(context, filter);
  }

  const auto pass = model_.make_pass(shape_.pass, io.pass_inputs(), context, memory.device, ledger);
  pass->encode_context();
  for (int t = 0; t < schema.levels(); ++t)
    issue_level(context, t, pass->decode_step(t), io, filtered ? &filter : nullptr);
  if (!context.measuring) io.issue_finish(context.stream);
  return io;
}

void GenerationPlan::issue_level(OpContext& context, int level, const ConstMatrix& logits, const PlanIo& io,
                                 const TrieFilterParams* filter) const {
  const InputSchema& schema = model_.schema();
  const auto t = static_cast<std::size_t>(level);
  const PassShape& pass = shape_.pass;
  const Range range(context, shape_.forced ? "beam_force" : "beam_select");
  const std::int64_t next = level + 1 < schema.levels() ? pass.rows[t + 1] : shape_.results;
  if (shape_.forced) {
    beam_force(context, {.level = level,
                         .levels = schema.levels(),
                         .logits = logits,
                         .codebook = schema.codebook_sizes[t],
                         .batch = pass.batch,
                         .rows_capacity = pass.rows[t],
                         .next_capacity = next,
                         .row_offsets = io.row_offsets(level),
                         .next_offsets = io.row_offsets(level + 1),
                         .forced = io.forced(),
                         .current = io.state(level),
                         .next = io.state(level + 1),
                         .status = io.status()});
    return;
  }
  beam_select(context, {.level = level,
                        .levels = schema.levels(),
                        .logits = logits,
                        .codebook = schema.codebook_sizes[t],
                        .batch = pass.batch,
                        .rows_capacity = pass.rows[t],
                        .next_capacity = next,
                        .max_request_rows = level == 0 ? 1 : pass.max_request_rows,
                        .max_request_next = pass.max_request_rows,
                        .row_offsets = io.row_offsets(level),
                        .next_offsets = io.row_offsets(level + 1),
                        .constrained = io.constrained(),
                        .trie = trie_ == nullptr ? nullptr : trie_->table(),
                        .blocked = filter == nullptr ? nullptr : filter->blocked,
                        .words = filter == nullptr ? 0 : filter->words,
                        .word_offset = filter == nullptr ? 0 : filter->word_offset[t],
                        .current = io.state(level),
                        .next = io.state(level + 1),
                        .status = io.status()});
}

}  // namespace onerec
