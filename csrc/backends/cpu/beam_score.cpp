#include "backends/cpu/beam_score.h"

#include <algorithm>
#include <cmath>

#include "backends/cpu/vector_math.h"
#include "core/multiversion.h"

namespace onerec::cpu {
namespace {

// Sums and maxima are kept in lanes of fixed places: vectors without a change of the result.
constexpr std::int64_t kLanes = 64;
// Candidates that are compared at once before any is looked at alone.
constexpr std::int64_t kBlock = 32;

// A comparison with NaN is false: NaN never becomes a maximum, and the log-sum-exp finds it.
ONEREC_MULTIVERSION void raise_to(const float* values, std::int64_t count, float* maxima) {
  for (std::int64_t i = 0; i < count; ++i) maxima[i] = values[i] > maxima[i] ? values[i] : maxima[i];
}

ONEREC_MULTIVERSION void lane_maxima(const float* values, std::int64_t count, float* maxima) {
  float lane[kLanes];
  for (std::int64_t i = 0; i < kLanes; ++i) lane[i] = -INFINITY;
  std::int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] = values[c + i] > lane[i] ? values[c + i] : lane[i];
  }
  for (std::int64_t i = 0; c + i < count; ++i) lane[i] = values[c + i] > lane[i] ? values[c + i] : lane[i];
  for (std::int64_t i = 0; i < kLanes; ++i) maxima[i] = lane[i];
}

ONEREC_MULTIVERSION float sum_exp(const float* values, std::int64_t count, float largest) {
  float lane[kLanes] = {};
  std::int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
    for (std::int64_t i = 0; i < kLanes; ++i) lane[i] += exp_of(values[c + i] - largest);
  }
  for (std::int64_t i = 0; c + i < count; ++i) lane[i] += exp_of(values[c + i] - largest);
  for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (std::int64_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

ONEREC_MULTIVERSION std::int64_t append_above(const RowScan& row, float threshold, std::uint64_t* keys) {
  std::int64_t kept = 0;
  for (std::int64_t begin = 0; begin < row.codebook; begin += kBlock) {
    const float* logits = row.logits + begin;
    const std::int64_t count = row.codebook - begin < kBlock ? row.codebook - begin : kBlock;
    if (count == kBlock) {
      int hits = 0;
      for (std::int64_t i = 0; i < kBlock; ++i) {
        hits += candidate_score(row.cumulative, logits[i], row.lse) >= threshold ? 1 : 0;
      }
      if (hits == 0) continue;
    }
    for (std::int64_t i = 0; i < count; ++i) {
      const std::uint64_t key = candidate_key(candidate_score(row.cumulative, logits[i], row.lse),
                                              row.place + static_cast<std::uint32_t>(begin + i));
      keys[kept] = key;
      kept += key <= row.last ? 1 : 0;
    }
  }
  return kept;
}

}  // namespace

float group_maxima(const float* logits, std::int64_t count, std::int64_t groups, float* maxima) {
  if (groups > kLanes) {
    std::fill_n(maxima, groups, -INFINITY);
    for (std::int64_t c = 0; c < count; c += groups) raise_to(logits + c, std::min(groups, count - c), maxima);
    return *std::max_element(maxima, maxima + groups);
  }
  float lane[kLanes];
  lane_maxima(logits, count, lane);
  std::int64_t lanes = kLanes;
  for (; lanes > groups; lanes /= 2) raise_to(lane + lanes / 2, lanes / 2, lane);
  std::copy_n(lane, groups, maxima);
  return *std::max_element(lane, lane + groups);
}

float log_sum_exp(const float* logits, std::int64_t count, float largest) {
  return largest + std::log(sum_exp(logits, count, largest));
}

float log_sum_exp(const float* logits, std::int64_t count) {
  float largest;
  group_maxima(logits, count, 1, &largest);
  return log_sum_exp(logits, count, largest);
}

std::int64_t append_candidates(const RowScan& row, std::uint64_t* keys) {
  // The score of the last admissible key; every score is at least -inf.
  return append_above(row, row.last == kLastKey ? -INFINITY : score_of(row.last), keys);
}

}  // namespace onerec::cpu
