// NumPy arrays as the engine's plain pointers, with checks that name the array.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/error.h"

namespace onerec::bindings {

namespace py = pybind11;

// Python's str() of a NumPy object, which takes microseconds: for errors alone.
inline std::string described(const py::handle& object) { return py::str(object).cast<std::string>(); }

// `object` as a C-contiguous array of T with the given shape (-1: any); never converts or copies.
template <class T>
py::array_t<T> checked_array(const std::string& name, const py::handle& object,
                             std::initializer_list<std::int64_t> shape) {
  if (!py::isinstance<py::array>(object)) {
    throw ArgumentError(
        concat("[bindings] got ", name, " that is no NumPy array, want ", described(py::dtype::of<T>()), "."));
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (!py::isinstance<py::array_t<T>>(array) || (array.flags() & py::array::c_style) == 0) {
    throw ArgumentError(concat("[bindings] got ", name, " of ", described(array.dtype()),
                               ", want a C-contiguous array of ", described(py::dtype::of<T>()), "."));
  }
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  py::ssize_t axis = 0;
  for (const std::int64_t extent : shape) {
    fits = fits && (extent < 0 || array.shape(axis) == extent);
    ++axis;
  }
  if (!fits) {
    throw ArgumentError(concat("[bindings] got ", name, " of shape ", described(array.attr("shape")),
                               ", which does not fit the other arrays."));
  }
  return py::reinterpret_borrow<py::array_t<T>>(array);
}

// `object` itself, or a copy if it is an array of T with gaps, in another order or out of alignment.
template <class T>
py::object plain_array(const py::handle& object) {
  constexpr int kPlain = int{py::array::c_style} | int{py::detail::npy_api::NPY_ARRAY_ALIGNED_};
  const auto array = py::reinterpret_borrow<py::object>(object);
  const bool strided = py::isinstance<py::array_t<T>>(array) && (py::array(array).flags() & kPlain) != kPlain;
  return strided ? py::object(py::array_t<T, kPlain>(array)) : array;
}

// A new array that owns a copy.
template <class T>
py::array_t<T> to_array(const std::vector<T>& values, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), values.data());
}

template <class T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return to_array(values, {static_cast<py::ssize_t>(values.size())});
}

}  // namespace onerec::bindings
