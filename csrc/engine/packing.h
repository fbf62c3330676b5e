// From requests of any number to the packed arrays of a run.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/item_index.h"

namespace onerec {

// Which token of a request has row 0 of a pathway's position table.
enum class PositionOrder { kOldestFirst, kNewestFirst };

// How the context tokens of a pathway are made.
struct PathwayPacking {
  static constexpr int kStatic = -1;

  int source = kStatic;         // the list of item ids that its tokens are; kStatic: one token per request
  std::int64_t max_tokens = 1;  // so many of the newest are kept
  PositionOrder positions = PositionOrder::kOldestFirst;
  std::vector<std::int64_t> fields;  // columns of each field of dense features; 0: a categorical one

  std::int64_t num_categorical() const;
  std::int64_t dense_columns() const;
};

// What a model and its catalogue make of any batch.
struct PackingRules {
  std::vector<PathwayPacking> pathways;
  std::size_t num_sources = 1;                // lists of item ids of a request; the first is its history
  std::vector<std::int64_t> max_widths;       // [levels]: beams that a search of the catalogue can use
  std::vector<std::int64_t> max_free_widths;  // [levels]: beams that any other search can use
};

// A list of item ids per request: request b has ids[offsets[b] .. offsets[b + 1]).
struct ItemLists {
  std::int64_t count = 0;  // of all requests
  const std::int64_t* ids = nullptr;
  const std::int64_t* offsets = nullptr;  // [size + 1]
};

// One value or row per id of the pathway's source, or per request; the other pointer is null.
struct FieldValues {
  const std::int64_t* categorical = nullptr;
  const float* dense = nullptr;  // [ids or size, columns]
};

// Non-owning arrays of the caller's; values are checked, as far as they are no indices here, by check_batch.
struct RequestArrays {
  std::int64_t size = 0;
  std::vector<ItemLists> sources;
  ItemLists exclude;
  std::vector<std::vector<FieldValues>> features;  // [pathway][field]
  const std::int64_t* widths = nullptr;            // [size, levels]: beams kept after each level
  const std::uint8_t* constrained = nullptr;       // [size]
  const std::uint8_t* exclude_history = nullptr;   // [size]
};

// The sizes of a run's arrays.
struct RunSizes {
  std::vector<std::int64_t> tokens;  // per pathway
  std::int64_t excluded = 0;
};

// The arrays of a Batch to be written; null where a pathway has no such input or no column.
struct RunArrays {
  struct Pathway {
    std::int32_t* codes = nullptr;
    std::int32_t* positions = nullptr;
    std::int32_t* rows = nullptr;
    std::int32_t* categorical = nullptr;
    float* dense = nullptr;
  };
  std::vector<Pathway> pathways;
  std::int32_t* context_offsets = nullptr;
  std::int32_t* widths = nullptr;
  std::uint8_t* constrained = nullptr;
  std::int32_t* excluded = nullptr;
  std::int32_t* excluded_offsets = nullptr;
};

// Requests whose items are looked up, ready to be cut into runs. Holds pointers to the caller's features and to what
// `rules` and `index` point to; every index that it follows is its own copy.
class PackedRequests {
 public:
  // Throws ArgumentError for offsets that do not ascend from 0 to the number of ids.
  PackedRequests(const RequestArrays& requests, const PackingRules& rules, const ItemIndex& index);

  const PackingRules& rules() const { return rules_; }
  std::int64_t size() const { return size_; }
  std::int64_t levels() const { return static_cast<std::int64_t>(rules_.max_widths.size()); }
  // [size, levels], without beams that can never live.
  const std::vector<std::int32_t>& widths() const { return widths_; }
  // [size]: tokens of all pathways.
  const std::vector<std::int64_t>& context_sizes() const { return context_sizes_; }
  // [size]: item ids of all sources that the catalogue does not have.
  const std::vector<std::int64_t>& unknown() const { return unknown_; }
  // [size]: known item ids that no pathway has room for.
  const std::vector<std::int64_t>& truncated() const { return truncated_; }
  // [size + 1]: request b excludes so many trie positions before its own.
  const std::vector<std::int64_t>& excluded_offsets() const { return excluded_offsets_; }

  // What a run of the requests chosen[0 .. count) takes, in that order; one may come twice. Throws ArgumentError for
  // one that there is not.
  RunSizes measure(const std::int64_t* chosen, std::int64_t count) const;
  void write(const std::int64_t* chosen, std::int64_t count, const RunArrays& to) const;

 private:
  // A source's ids in the catalogue.
  struct Source {
    std::vector<std::int64_t> offsets;  // [size + 1]
    std::vector<std::int32_t> items;    // per id, the item; -1: unknown
    std::vector<std::int64_t> known;    // [size]
  };

  static std::int64_t oldest_kept(const Source& source, std::int64_t end, std::int64_t count);
  Source look_up(const ItemLists& lists) const;
  void count_lost();
  void add_excluded(const RequestArrays& requests);
  void limit_widths(const RequestArrays& requests);
  std::int64_t tokens(const PathwayPacking& pathway, std::int64_t request) const;
  void write_pathway(std::size_t p, std::int64_t request, std::int64_t token, std::int64_t row,
                     const RunArrays::Pathway& to) const;
  void write_features(std::size_t p, std::int64_t from, std::int64_t token, const RunArrays::Pathway& to) const;

  std::int64_t size_;
  const PackingRules& rules_;
  const ItemIndex& index_;
  std::vector<std::vector<FieldValues>> features_;
  std::vector<Source> sources_;
  std::vector<std::uint8_t> constrained_;
  std::vector<std::int32_t> widths_;
  std::vector<std::int64_t> context_sizes_, unknown_, truncated_;
  std::vector<std::int32_t> excluded_;
  std::vector<std::int64_t> excluded_offsets_;
};

}  // namespace onerec
