#include "engine/batch.h"

#include <algorithm>

#include "core/error.h"

namespace onerec {
namespace {

void check_offsets(const char* name, const std::int32_t* offsets, std::int64_t size) {
  require(offsets != nullptr && offsets[0] == 0, "[batch] got ", name, " that do not start at 0.");
  for (std::int64_t b = 0; b < size; ++b) {
    require(offsets[b] <= offsets[b + 1], "[batch] request ", b, ": ", name, " descend from ", offsets[b], " to ",
            offsets[b + 1], ".");
  }
}

// values[i * stride] in [0, limit) for i < count
void check_range(const char* what, std::int64_t pathway, const std::int32_t* values, std::int64_t count,
                 std::int64_t stride, std::int64_t limit) {
  require(count == 0 || values != nullptr, "[batch] pathway ", pathway, " lacks its ", what, ".");
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t value = values[i * stride];
    require(value >= 0 && value < limit, "[batch] pathway ", pathway, ", token ", i, ": got ", what, " ", value,
            ", want one in [0, ", limit, ").");
  }
}

void check_context(const Batch& batch, const InputSchema& schema) {
  const auto levels = std::int64_t{schema.levels()};
  require(batch.pathways.size() == schema.pathways.size(), "[batch] got ", batch.pathways.size(), " pathways, want ",
          schema.pathways.size(), ".");
  const std::int64_t total = batch.context_tokens();
  std::vector<bool> taken(static_cast<std::size_t>(total));
  std::int64_t placed = 0;
  for (std::size_t p = 0; p < batch.pathways.size(); ++p) {
    const PathwayBatch& tokens = batch.pathways[p];
    const auto& pathway = schema.pathways[p];
    const auto index = static_cast<std::int64_t>(p);
    check_range("row", index, tokens.rows, tokens.tokens, 1, total);
    for (std::int64_t i = 0; i < tokens.tokens; ++i) {
      require(!taken[static_cast<std::size_t>(tokens.rows[i])], "[batch] context row ", tokens.rows[i],
              " is given twice.");
      taken[static_cast<std::size_t>(tokens.rows[i])] = true;
    }
    placed += tokens.tokens;
    check_range("position", index, tokens.positions, tokens.tokens, 1, pathway.max_tokens);
    for (std::int64_t t = 0; pathway.items && t < levels; ++t) {
      check_range("code", index, tokens.codes == nullptr ? nullptr : tokens.codes + t, tokens.tokens, levels,
                  schema.codebook_sizes[static_cast<std::size_t>(t)]);
    }
    const auto fields = pathway.num_categorical();
    for (std::int64_t f = 0; f < fields; ++f) {
      check_range("categorical id", index, tokens.categorical == nullptr ? nullptr : tokens.categorical + f,
                  tokens.tokens, fields, pathway.num_embeddings[static_cast<std::size_t>(f)]);
    }
    require(pathway.dense_columns == 0 || tokens.tokens == 0 || tokens.dense != nullptr, "[batch] pathway ", index,
            " lacks its dense features.");
  }
  require(placed == total, "[batch] got ", placed, " context tokens in the pathways, want ", total,
          " as context_offsets say.");
}

}  // namespace

void check_batch(const Batch& batch, const InputSchema& schema, std::int64_t items, const BatchLimits& limits) {
  require(batch.size > 0 && batch.size <= limits.max_batch, "[batch] got ", batch.size,
          " requests, want 1 to max_batch = ", limits.max_batch, ".");
  check_offsets("context_offsets", batch.context_offsets, batch.size);
  check_offsets("excluded_offsets", batch.excluded_offsets, batch.size);
  require(batch.context_tokens() <= limits.max_context_tokens, "[batch] got ", batch.context_tokens(),
          " context tokens, want at most ", limits.max_context_tokens, ".");
  require(batch.num_excluded() <= limits.max_excluded, "[batch] got ", batch.num_excluded(),
          " excluded items, want at most ", limits.max_excluded, ".");
  check_context(batch, schema);

  const auto levels = std::int64_t{schema.levels()};
  for (std::int64_t t = 0; t < levels; ++t) {
    std::int64_t rows = 0;
    for (std::int64_t b = 0; b < batch.size; ++b) {
      const std::int32_t width = batch.widths[b * levels + t];
      require(width >= (batch.forced == nullptr ? 1 : 0), "[batch] request ", b, ": got beam width ", width,
              ", want at least 1.");
      require(batch.forced == nullptr || width == batch.widths[b * levels], "[batch] request ", b,
              ": a scored request has one width for all levels.");
      rows += width;
    }
    require(rows <= limits.max_rows, "[batch] got ", rows, " beams after level ", t, ", want at most ", limits.max_rows,
            ".");
  }
  for (std::int64_t b = 0; b < batch.size; ++b) {
    require(batch.constrained[b] == 0 || batch.forced != nullptr || items > 0, "[batch] request ", b,
            " is constrained to the catalogue, but none is set.");
    for (std::int32_t i = batch.excluded_offsets[b]; i < batch.excluded_offsets[b + 1]; ++i) {
      const bool ascends = i == batch.excluded_offsets[b] || batch.excluded[i] > batch.excluded[i - 1];
      require(batch.excluded[i] >= 0 && batch.excluded[i] < items && ascends, "[batch] request ", b,
              ": excluded positions have to ascend within the catalogue.");
    }
  }
  if (batch.forced == nullptr) return;
  std::int64_t rows = 0;
  for (std::int64_t b = 0; b < batch.size; ++b) rows += batch.widths[b * levels];
  for (std::int64_t i = 0; i < rows * levels; ++i) {
    const std::int64_t size = schema.codebook_sizes[static_cast<std::size_t>(i % levels)];
    require(batch.forced[i] >= 0 && batch.forced[i] < size, "[batch] row ", i / levels, ": got code ", batch.forced[i],
            " at level ", i % levels, ", want one in [0, ", size, ").");
  }
}

}  // namespace onerec
