// From a batch's columns to the arrays that Core.run takes, as Python objects.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/held_items.h"
#include "engine/packing.h"

namespace onerec::bindings {

namespace py = pybind11;

// Packed requests together with the arrays that they point into. Immutable: any number of threads may call it.
class HeldRequests {
 public:
  HeldRequests(py::tuple held, std::shared_ptr<const std::vector<std::string>> names, PackedRequests packed);

  const PackedRequests& packed() const { return packed_; }
  // What Core.run takes for the requests `chosen`, int64 [count].
  py::dict arrays(const py::array& chosen) const;

 private:
  py::tuple held_;
  std::shared_ptr<const std::vector<std::string>> names_;  // of the pathways
  PackedRequests packed_;
};

// Immutable: any number of threads may call it.
class Packer {
 public:
  // (name, number of the source or -1, tokens kept, position embedding, columns of each dense field or 0)
  using Pathway = std::tuple<std::string, int, std::int64_t, std::string, std::vector<std::int64_t>>;

  Packer(py::object items, const std::vector<Pathway>& pathways, std::size_t sources,
         std::vector<std::int64_t> max_widths, std::vector<std::int64_t> max_free_widths);

  // `sources`: (ids, offsets) each; `features`: an array per field, pathway by pathway.
  static HeldRequests pack(const py::object& self, const py::sequence& sources, const py::tuple& exclude,
                           const py::sequence& features, const py::array& widths, const py::array& constrained,
                           const py::array& exclude_history);

 private:
  py::object held_items_;
  const ItemIndex& index_;
  std::shared_ptr<const std::vector<std::string>> names_;
  PackingRules rules_;
};

void bind_packer(py::module_& module);

}  // namespace onerec::bindings
