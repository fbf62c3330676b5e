// What requests ask of a search, checked.
#pragma once

#include <cstdint>

namespace onerec {

// In a request's num_results: as many as the call says.
inline constexpr std::int64_t kUnset = -1;

// What a call says, and what the engine allows.
struct CallSettings {
  std::int64_t max_width = 0;
  std::int64_t num_results = kUnset;  // of requests that do not say themselves; kUnset: default_results
  std::int64_t default_results = 0;   // or as many as the last width, if that is less
};

// The first request of `widths` [size, levels] with one outside [1, max_width]; -1 if there is none.
std::int64_t first_wrong_width(const std::int64_t* widths, std::int64_t size, std::int64_t levels,
                               std::int64_t max_width);

// Fills in the entries of `num_results` [size] that are kUnset, and returns the first request with one outside [1, its
// last width]; -1 if there is none.
std::int64_t fill_num_results(const std::int64_t* widths, std::int64_t size, std::int64_t levels,
                              const CallSettings& settings, std::int64_t* num_results);

}  // namespace onerec
