#include "engine/search_settings.h"

#include <algorithm>

namespace onerec {

std::int64_t first_wrong_width(const std::int64_t* widths, std::int64_t size, std::int64_t levels,
                               std::int64_t max_width) {
  const std::int64_t* end = widths + size * levels;
  const auto wrong = [&](std::int64_t width) { return width < 1 || width > max_width; };
  const std::int64_t* at = std::find_if(widths, end, wrong);
  return at == end ? -1 : (at - widths) / levels;
}

std::int64_t fill_num_results(const std::int64_t* widths, std::int64_t size, std::int64_t levels,
                              const CallSettings& settings, std::int64_t* num_results) {
  std::int64_t first_wrong = -1;
  for (std::int64_t b = 0; b < size; ++b) {
    const std::int64_t last = widths[(b + 1) * levels - 1];
    const std::int64_t fallback =
        settings.num_results == kUnset ? std::min(settings.default_results, last) : settings.num_results;
    if (num_results[b] == kUnset) num_results[b] = fallback;
    if (first_wrong < 0 && (num_results[b] < 1 || num_results[b] > last)) first_wrong = b;
  }
  return first_wrong;
}

}  // namespace onerec
