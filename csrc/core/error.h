// Errors of the engine. Messages read "[op] got X, want Y. Do Z."
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace onerec {

// The caller passed something that cannot be served (ValueError in Python).
class ArgumentError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// The engine is in a state in which it cannot do what was asked (EngineError in Python).
class StateError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A plan needs more memory than there is (OutOfMemoryPlanError in Python).
class PlanMemoryError : public StateError {
 public:
  using StateError::StateError;
};

// The device failed; the engine that used it is dead (DeviceError in Python).
class DeviceError : public StateError {
 public:
  using StateError::StateError;
};

// A broken invariant of the engine itself (RuntimeError in Python): please report.
class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// Concatenates its arguments with operator<<. For error messages, never for the decode path.
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

template <class... Args>
void require(bool condition, const Args&... message) {
  if (!condition) throw ArgumentError(concat(message...));
}

template <class... Args>
void ensure(bool condition, const Args&... message) {
  if (!condition) throw InternalError(concat("internal error: ", message...));
}

}  // namespace onerec
