// When a loop over arrays is worth giving the GIL away.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>

namespace onerec::bindings {

// Releases the GIL while it lives, if `steps` are many. For a few microseconds that helps nobody, and whoever takes the
// GIL meanwhile may keep it for milliseconds.
class LongLoop {
 public:
  explicit LongLoop(std::int64_t steps) {
    if (steps >= kMany) release_.emplace();
  }

 private:
  static constexpr std::int64_t kMany = 4096;
  std::optional<pybind11::gil_scoped_release> release_;
};

}  // namespace onerec::bindings
