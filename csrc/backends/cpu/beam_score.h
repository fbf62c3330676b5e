// The arithmetic of beam search on rows of logits, and the order of candidates.
#pragma once

#include <bit>
#include <cstdint>

#include "ops/beam_search.h"

namespace onerec::cpu {

// A candidate as one number: ascending keys are descending scores (-0 as +0), and within a score ascending `place` =
// row * codebook + code.
inline constexpr std::uint64_t kLastKey = ~std::uint64_t{0};

inline std::uint64_t candidate_key(float score, std::uint32_t place) {
  const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);
  const std::uint32_t ascending = bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  return static_cast<std::uint64_t>(~ascending) << 32 | place;
}

inline float score_of(std::uint64_t key) {
  const std::uint32_t ascending = ~static_cast<std::uint32_t>(key >> 32);
  return std::bit_cast<float>(ascending ^ ((ascending >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

// A candidate's score. The rounding is part of the contract: the logarithm of the probability first, then the sum.
inline float candidate_score(float cumulative, float logit, float lse) { return cumulative + (logit - lse); }

// maxima[c % groups] = the largest of those logits (-inf: none, or NaN). groups: a power of two. Returns the largest of
// all.
float group_maxima(const float* logits, std::int64_t count, std::int64_t groups, float* maxima);

// largest + log(sum exp(logit - largest)); not finite if a logit is NaN or +inf, or all are -inf.
float log_sum_exp(const float* logits, std::int64_t count, float largest);

// The same, where the largest is not known yet.
float log_sum_exp(const float* logits, std::int64_t count);

// Appends the keys <= `last` of a row's candidates to `keys`, which has room for all of them. Returns how many.
struct RowScan {
  const float* logits = nullptr;
  std::int64_t codebook = 0;
  float cumulative = 0.0f;
  float lse = 0.0f;
  std::uint32_t place = 0;  // of code 0
  std::uint64_t last = kLastKey;
};
std::int64_t append_candidates(const RowScan& row, std::uint64_t* keys);

// Whether edge e of a level is blocked, `blocked` being the level's bits of the request or null.
inline bool is_blocked(const std::uint32_t* blocked, std::int64_t e) {
  return blocked != nullptr && (blocked[e / 32] >> (e % 32) & 1u) != 0;
}

// Row `next_row` of params.next becomes the continuation of `parent` (-1: there is none) by `code`. Ancestries that are
// null are not kept.
template <class Params>
void extend_beam(const Params& params, std::int64_t parent, std::int32_t code, std::int64_t next_row) {
  std::int32_t* codes = params.next.codes + next_row * params.levels;
  for (int s = 0; s < params.level; ++s) {
    codes[s] = parent < 0 ? 0 : params.current.codes[parent * params.levels + s];
  }
  codes[params.level] = code;
  for (int s = 0; s <= params.level; ++s) {
    const std::int32_t* from = params.current.ancestry[s];
    std::int32_t* to = params.next.ancestry[s];
    if (to == nullptr || (s < params.level && from == nullptr)) continue;
    if (parent < 0) {
      to[next_row] = 0;
    } else {
      to[next_row] = s == params.level ? static_cast<std::int32_t>(parent) : from[parent];
    }
  }
}

}  // namespace onerec::cpu
