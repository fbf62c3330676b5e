// The catalogue on the host as a Python object.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "engine/item_index.h"

namespace onerec::bindings {

namespace py = pybind11;

// An ItemIndex together with the arrays that it points into. Immutable: any number of threads may call it.
class HeldItems {
 public:
  // int64 [items], int32 [items, levels], int32 [items], int32 [items], int32 [leaves + 1], as in ItemIndex.
  HeldItems(const py::array& item_ids, const py::array& semantic_ids, const py::array& order, const py::array& position,
            const py::array& leaf_items);

  const ItemIndex& index() const { return index_; }
  // The fields of RunItems for what Core.run answered.
  py::tuple expand(const py::dict& beams, const py::array& constrained, const py::array& num_results,
                   const py::array& excluded, const py::array& excluded_offsets) const;

 private:
  py::tuple arrays_;
  ItemIndex index_;
};

void bind_held_items(py::module_& module);

}  // namespace onerec::bindings
