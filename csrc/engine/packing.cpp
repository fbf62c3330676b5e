#include "engine/packing.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace onerec {
namespace {

// Items are at random places of the catalogue. Asked for so many tokens ahead, they come side by side from memory.
constexpr std::int64_t kAhead = 32;

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }

std::vector<std::int64_t> copy_offsets(const ItemLists& lists, std::int64_t size) {
  std::vector<std::int64_t> offsets(lists.offsets, lists.offsets + size + 1);
  const bool ascends = std::is_sorted(offsets.begin(), offsets.end());
  require(offsets.front() == 0 && offsets.back() == lists.count && ascends, "[batch] got offsets from ",
          offsets.front(), " to ", offsets.back(), ", want some that ascend from 0 to ", lists.count, ".");
  return offsets;
}

}  // namespace

std::int64_t PathwayPacking::num_categorical() const { return std::count(fields.begin(), fields.end(), 0); }

std::int64_t PathwayPacking::dense_columns() const {
  return std::accumulate(fields.begin(), fields.end(), std::int64_t{0});
}

PackedRequests::PackedRequests(const RequestArrays& requests, const PackingRules& rules, const ItemIndex& index)
    : size_(requests.size),
      rules_(rules),
      index_(index),
      features_(requests.features),
      constrained_(requests.constrained, requests.constrained + requests.size),
      context_sizes_(at(size_)),
      unknown_(at(size_)),
      truncated_(at(size_)) {
  for (const ItemLists& lists : requests.sources) sources_.push_back(look_up(lists));
  for (const PathwayPacking& pathway : rules_.pathways) {
    for (std::int64_t b = 0; b < size_; ++b) context_sizes_[at(b)] += tokens(pathway, b);
  }
  count_lost();
  add_excluded(requests);
  limit_widths(requests);
}

PackedRequests::Source PackedRequests::look_up(const ItemLists& lists) const {
  Source source{.offsets = copy_offsets(lists, size_), .items = {}, .known = std::vector<std::int64_t>(at(size_))};
  source.items.reserve(at(lists.count));
  for (std::int64_t b = 0; b < size_; ++b) {
    for (std::int64_t i = source.offsets[at(b)]; i < source.offsets[at(b + 1)]; ++i) {
      const std::int64_t item = find_id(index_.item_ids, index_.items, lists.ids[i]);
      source.items.push_back(static_cast<std::int32_t>(item));
      source.known[at(b)] += item >= 0;
    }
  }
  return source;
}

void PackedRequests::count_lost() {
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    std::int64_t room = -1;
    for (const PathwayPacking& pathway : rules_.pathways) {
      if (pathway.source == static_cast<int>(s)) room = std::max(room, pathway.max_tokens);
    }
    const Source& source = sources_[s];
    for (std::size_t b = 0; b < at(size_); ++b) {
      unknown_[b] += source.offsets[b + 1] - source.offsets[b] - source.known[b];
      if (room >= 0) truncated_[b] += std::max(source.known[b] - room, std::int64_t{0});
    }
  }
}

void PackedRequests::add_excluded(const RequestArrays& requests) {
  const Source named = look_up(requests.exclude);
  excluded_offsets_.reserve(at(size_ + 1));
  excluded_offsets_.push_back(0);
  for (std::int64_t b = 0; b < size_; ++b) {
    const auto begin = excluded_.end() - excluded_.begin();
    const auto add = [&](const Source& source) {
      for (std::int64_t i = source.offsets[at(b)]; i < source.offsets[at(b + 1)]; ++i) {
        if (source.items[at(i)] >= 0) excluded_.push_back(index_.position[source.items[at(i)]]);
      }
    };
    add(named);
    if (requests.exclude_history[b] != 0) add(sources_.front());
    std::sort(excluded_.begin() + begin, excluded_.end());
    excluded_.erase(std::unique(excluded_.begin() + begin, excluded_.end()), excluded_.end());
    excluded_offsets_.push_back(static_cast<std::int64_t>(excluded_.size()));
  }
}

void PackedRequests::limit_widths(const RequestArrays& requests) {
  widths_.reserve(at(size_ * levels()));
  for (std::int64_t b = 0; b < size_; ++b) {
    const auto& most = constrained_[at(b)] != 0 ? rules_.max_widths : rules_.max_free_widths;
    for (std::int64_t t = 0; t < levels(); ++t) {
      widths_.push_back(static_cast<std::int32_t>(std::min(requests.widths[b * levels() + t], most[at(t)])));
    }
  }
}

std::int64_t PackedRequests::tokens(const PathwayPacking& pathway, std::int64_t request) const {
  if (pathway.source == PathwayPacking::kStatic) return 1;
  return std::min(sources_[at(pathway.source)].known[at(request)], pathway.max_tokens);
}

RunSizes PackedRequests::measure(const std::int64_t* chosen, std::int64_t count) const {
  RunSizes sizes{.tokens = std::vector<std::int64_t>(rules_.pathways.size())};
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t b = chosen[i];
    require(b >= 0 && b < size_, "[batch] got request ", b, ", want one in [0, ", size_, ").");
    for (std::size_t p = 0; p < sizes.tokens.size(); ++p) sizes.tokens[p] += tokens(rules_.pathways[p], b);
    sizes.excluded += excluded_offsets_[at(b + 1)] - excluded_offsets_[at(b)];
  }
  return sizes;
}

void PackedRequests::write(const std::int64_t* chosen, std::int64_t count, const RunArrays& to) const {
  std::vector<std::int64_t> written(rules_.pathways.size());
  std::int64_t row = 0;
  std::int64_t excluded = 0;
  to.context_offsets[0] = 0;
  to.excluded_offsets[0] = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t b = chosen[i];
    for (std::size_t p = 0; p < written.size(); ++p) {
      write_pathway(p, b, written[p], row, to.pathways[p]);
      const std::int64_t tokens = this->tokens(rules_.pathways[p], b);
      written[p] += tokens;
      row += tokens;
    }
    to.context_offsets[i + 1] = static_cast<std::int32_t>(row);
    std::copy_n(widths_.data() + b * levels(), levels(), to.widths + i * levels());
    to.constrained[i] = constrained_[at(b)];
    const std::int64_t first = excluded_offsets_[at(b)];
    const std::int64_t excludes = excluded_offsets_[at(b + 1)] - first;
    std::copy_n(excluded_.data() + first, excludes, to.excluded + excluded);
    excluded += excludes;
    to.excluded_offsets[i + 1] = static_cast<std::int32_t>(excluded);
  }
}

// Where the newest `count` known ids before `end` begin.
std::int64_t PackedRequests::oldest_kept(const Source& source, std::int64_t end, std::int64_t count) {
  for (; count > 0; --count) {
    do {
      --end;
    } while (source.items[at(end)] < 0);
  }
  return end;
}

// A request's tokens of a pathway, to the places from `token` on, in the rows from `row` on.
void PackedRequests::write_pathway(std::size_t p, std::int64_t request, std::int64_t token, std::int64_t row,
                                   const RunArrays::Pathway& to) const {
  const PathwayPacking& pathway = rules_.pathways[p];
  const std::int64_t count = tokens(pathway, request);
  for (std::int64_t i = 0; i < count; ++i) {
    const bool newest_first = pathway.positions == PositionOrder::kNewestFirst;
    to.positions[token + i] = static_cast<std::int32_t>(newest_first ? count - 1 - i : i);
    to.rows[token + i] = static_cast<std::int32_t>(row + i);
  }
  if (pathway.source == PathwayPacking::kStatic) {
    write_features(p, request, token, to);
    return;
  }
  const Source& source = sources_[at(pathway.source)];
  const std::int64_t end = source.offsets[at(request + 1)];
  std::int64_t to_token = token;
  for (std::int64_t from = oldest_kept(source, end, count); from < end; ++from) {
    if (from + kAhead < end) __builtin_prefetch(index_.codes(std::max(source.items[at(from + kAhead)], 0)));
    const std::int64_t item = source.items[at(from)];
    if (item < 0) continue;
    std::copy_n(index_.codes(item), index_.levels, to.codes + to_token * index_.levels);
    write_features(p, from, to_token++, to);
  }
}

void PackedRequests::write_features(std::size_t p, std::int64_t from, std::int64_t token,
                                    const RunArrays::Pathway& to) const {
  const PathwayPacking& pathway = rules_.pathways[p];
  if (pathway.fields.empty()) return;
  std::int32_t* categorical = to.categorical + token * pathway.num_categorical();
  float* dense = to.dense + token * pathway.dense_columns();
  for (std::size_t f = 0; f < pathway.fields.size(); ++f) {
    const std::int64_t columns = pathway.fields[f];
    if (columns == 0) {
      *categorical++ = static_cast<std::int32_t>(features_[p][f].categorical[from]);
    } else {
      dense = std::copy_n(features_[p][f].dense + from * columns, columns, dense);
    }
  }
}

}  // namespace onerec
