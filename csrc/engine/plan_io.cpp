#include "engine/plan_io.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace onerec {
namespace {

// Buckets are 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: at most a third of a capacity is unused.
std::int64_t bucket(std::int64_t value) {
  if (value <= 4) return value;
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(value - 1)));
  return value <= power + power / 2 ? power + power / 2 : 2 * power;
}

template <class T>
void copy(T* to, const T* from, std::int64_t count) {
  if (count > 0) std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

// Requests behind the live ones are empty: their offsets repeat the last one.
void copy_offsets(std::int32_t* to, const std::int32_t* from, std::int64_t size, std::int64_t capacity) {
  copy(to, from, size + 1);
  std::fill(to + size + 1, to + capacity + 1, from[size]);
}

}  // namespace

PlanShape plan_shape(const Batch& batch, int levels) {
  PlanShape shape;
  shape.pass.batch = bucket(batch.size);
  shape.pass.rows = {shape.pass.batch};
  for (int t = 0; t < levels; ++t) {
    std::int64_t rows = 0;
    for (std::int64_t b = 0; b < batch.size; ++b) {
      const std::int64_t width = batch.widths[b * levels + t];
      rows += width;
      shape.pass.max_request_rows = std::max(shape.pass.max_request_rows, bucket(width));
    }
    (t + 1 < levels ? shape.pass.rows.emplace_back() : shape.results) = bucket(rows);
  }
  for (const auto& pathway : batch.pathways) shape.pass.pathway_tokens.push_back(bucket(pathway.tokens));
  shape.pass.context_tokens = bucket(batch.context_tokens());
  for (std::int64_t b = 0; b < batch.size; ++b) {
    const std::int64_t tokens = batch.context_offsets[b + 1] - batch.context_offsets[b];
    shape.pass.max_request_tokens = std::max(shape.pass.max_request_tokens, bucket(tokens));
  }
  shape.excluded = bucket(batch.num_excluded());
  shape.forced = batch.forced != nullptr;
  return shape;
}

PlanIo::PlanIo(const PlanShape& shape, const InputSchema& schema, PlanMemory& memory, MemoryLedger& ledger)
    : shape_(shape), schema_(schema) {
  const PassShape& pass = shape.pass;
  const int levels = schema.levels();
  const std::size_t start = memory.device.used();
  // Both blocks grow in step, so one copy moves all of it.
  const auto mirror = [&memory](auto& array, Arena& host, std::int64_t count) {
    using T = std::remove_reference_t<decltype(*array.host)>;
    array.host = host.template allocate_array<T>(count);
    array.device = memory.device.allocate_array<T>(count);
    array.count = count;
  };

  input_ = {memory.input.next(), memory.device.next(), 0};
  for (std::size_t p = 0; p < schema.pathways.size(); ++p) {
    const auto& fields = schema.pathways[p];
    const std::int64_t tokens = pass.pathway_tokens[p];
    Pathway& pathway = pathways_.emplace_back();
    mirror(pathway.count, memory.input, 1);
    mirror(pathway.codes, memory.input, fields.items ? tokens * levels : 0);
    mirror(pathway.positions, memory.input, tokens);
    mirror(pathway.rows, memory.input, tokens);
    mirror(pathway.categorical, memory.input, tokens * fields.num_categorical());
    mirror(pathway.dense, memory.input, tokens * fields.dense_columns);
  }
  mirror(context_offsets_, memory.input, pass.batch + 1);
  row_offsets_.resize(static_cast<std::size_t>(levels) + 1);
  for (auto& offsets : row_offsets_) mirror(offsets, memory.input, pass.batch + 1);
  mirror(constrained_, memory.input, pass.batch);
  mirror(excluded_, memory.input, shape.excluded);
  mirror(excluded_offsets_, memory.input, pass.batch + 1);
  mirror(forced_, memory.input, shape.forced ? shape.results * levels : 0);
  mirror(start_scores_, memory.input, pass.batch);
  mirror(start_states_, memory.input, pass.batch);
  // The status goes both ways: it ends the one block and begins the other.
  void* const status = memory.device.next();
  mirror(start_status_, memory.input, pass.batch + 1);
  input_.bytes = memory.input.used();

  output_ = {memory.output.next(), status, 0};
  status_ = {memory.output.allocate_array<std::int32_t>(pass.batch + 1), start_status_.device, pass.batch + 1};
  mirror(scores_, memory.output, shape.results);
  mirror(leaves_, memory.output, shape.results);
  mirror(codes_, memory.output, shape.results * levels);
  output_.bytes = memory.output.used();
  ledger["io"] += memory.device.used() - start;

  const std::size_t beams = memory.device.used();
  for (int t = 0; t <= levels; ++t) {
    const bool last = t == levels;
    const std::int64_t rows = last ? shape.results : pass.rows[static_cast<std::size_t>(t)];
    BeamState& state = states_.emplace_back();
    if (t == 0) {
      state.scores = start_scores_.device;
      state.states = start_states_.device;
    } else {
      state.scores = last ? scores_.device : memory.device.allocate_array<float>(rows);
      state.states = last ? leaves_.device : memory.device.allocate_array<std::int32_t>(rows);
    }
    state.codes = last ? codes_.device : memory.device.allocate_array<std::int32_t>(rows * levels);
    for (int s = 0; s < t; ++s)
      state.ancestry[static_cast<std::size_t>(s)] = memory.device.allocate_array<std::int32_t>(rows);
  }
  ledger["beam_state"] += memory.device.used() - beams;
}

void PlanIo::issue_start(Stream& stream) const { stream.copy_to_device(input_.device, input_.host, input_.bytes); }

void PlanIo::issue_finish(Stream& stream) const { stream.copy_to_host(output_.host, output_.device, output_.bytes); }

PassInputs PlanIo::pass_inputs() const {
  PassInputs inputs;
  for (const auto& pathway : pathways_) {
    inputs.pathways.push_back({.codes = pathway.codes.device,
                               .positions = pathway.positions.device,
                               .rows = pathway.rows.device,
                               .categorical = pathway.categorical.device,
                               .dense = pathway.dense.device,
                               .count = pathway.count.device});
  }
  inputs.context_offsets = context_offsets_.device;
  inputs.overflowed = status_.device + shape_.pass.batch;
  for (std::size_t t = 0; t < shape_.pass.rows.size(); ++t) {
    inputs.row_offsets.push_back(row_offsets_[t].device);
    inputs.row_count.push_back(row_offsets_[t].device + shape_.pass.batch);
    inputs.codes.push_back(states_[t].codes);
    auto& ancestry = inputs.ancestry.emplace_back();
    for (std::size_t s = 0; s < ancestry.size(); ++s) ancestry[s] = states_[t].ancestry[s];
  }
  return inputs;
}

void PlanIo::load(const Batch& batch) const {
  const int levels = schema_.levels();
  const std::int64_t capacity = shape_.pass.batch;
  for (std::size_t p = 0; p < pathways_.size(); ++p) {
    const PathwayBatch& from = batch.pathways[p];
    const Pathway& to = pathways_[p];
    *to.count.host = static_cast<std::int32_t>(from.tokens);
    if (schema_.pathways[p].items) copy(to.codes.host, from.codes, from.tokens * levels);
    copy(to.positions.host, from.positions, from.tokens);
    copy(to.rows.host, from.rows, from.tokens);
    copy(to.categorical.host, from.categorical, from.tokens * schema_.pathways[p].num_categorical());
    copy(to.dense.host, from.dense, from.tokens * schema_.pathways[p].dense_columns);
  }
  copy_offsets(context_offsets_.host, batch.context_offsets, batch.size, capacity);
  for (int t = 0; t <= levels; ++t) {
    std::int32_t* offsets = row_offsets_[static_cast<std::size_t>(t)].host;
    offsets[0] = 0;
    for (std::int64_t b = 0; b < capacity; ++b) {
      const bool alive = b < batch.size;
      offsets[b + 1] = offsets[b] + (alive ? (t == 0 ? 1 : batch.widths[b * levels + t - 1]) : 0);
    }
  }
  copy(constrained_.host, batch.constrained, batch.size);
  std::fill(constrained_.host + batch.size, constrained_.host + capacity, std::uint8_t{0});
  copy(excluded_.host, batch.excluded, batch.num_excluded());
  copy_offsets(excluded_offsets_.host, batch.excluded_offsets, batch.size, capacity);
  if (shape_.forced) copy(forced_.host, batch.forced, row_offsets_.back().host[batch.size] * levels);
  std::fill_n(start_scores_.host, capacity, 0.0f);
  std::fill_n(start_states_.host, capacity, 0);
  std::fill_n(start_status_.host, capacity + 1, 0);
}

void PlanIo::read(const Batch& batch, BatchResult& result) const {
  const std::int32_t* offsets = row_offsets_.back().host;
  const std::int64_t rows = offsets[batch.size];
  result.offsets.assign(offsets, offsets + batch.size + 1);
  result.scores.assign(scores_.host, scores_.host + rows);
  result.leaves.assign(leaves_.host, leaves_.host + rows);
  result.codes.assign(codes_.host, codes_.host + rows * schema_.levels());
  result.status.assign(status_.host, status_.host + batch.size);
}

}  // namespace onerec
