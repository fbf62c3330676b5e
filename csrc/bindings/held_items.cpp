#include "bindings/held_items.h"

#include <algorithm>

#include "bindings/arrays.h"
#include "bindings/long_loop.h"
#include "engine/expansion.h"

namespace onerec::bindings {
namespace {

py::object entry(const py::dict& from, const char* name) {
  if (!from.contains(name)) throw ArgumentError(concat("[bindings] the beams lack ", name, "."));
  return from[name];
}

// The first `count` rows.
py::object head(const py::array& array, py::ssize_t count) {
  return array.shape(0) == count ? py::object(array) : array[py::slice(0, count, 1)];
}

// Each request has rows of its own.
void check_offsets(const std::int32_t* offsets, std::int64_t size, std::int64_t rows) {
  bool ascends = size >= 0 && offsets[0] == 0 && offsets[size] == rows;
  for (std::int64_t b = 0; b < size; ++b) ascends = ascends && offsets[b] <= offsets[b + 1];
  require(ascends, "[bindings] got offsets that do not ascend from 0 to ", rows, ".");
}

py::array_t<std::int64_t> find_ids(const py::array& ids, const py::array& wanted) {
  const auto known = checked_array<std::int64_t>("ids", ids, {-1});
  const auto asked = checked_array<std::int64_t>("wanted", plain_array<std::int64_t>(wanted), {-1});
  py::array_t<std::int64_t> found(asked.shape(0));
  const std::int64_t* first = known.data();
  const std::int64_t count = known.shape(0);
  const std::int64_t* from = asked.data();
  const std::int64_t* end = from + asked.shape(0);
  std::int64_t* to = found.mutable_data();
  {
    const LongLoop release(end - from);
    std::transform(from, end, to, [&](std::int64_t id) { return find_id(first, count, id); });
  }
  return found;
}

}  // namespace

HeldItems::HeldItems(const py::array& item_ids, const py::array& semantic_ids, const py::array& order,
                     const py::array& position, const py::array& leaf_items)
    : arrays_(py::make_tuple(item_ids, semantic_ids, order, position, leaf_items)) {
  const auto ids = checked_array<std::int64_t>("item_ids", item_ids, {-1});
  const auto codes = checked_array<std::int32_t>("semantic_ids", semantic_ids, {ids.shape(0), -1});
  const auto leaves = checked_array<std::int32_t>("leaf_items", leaf_items, {-1});
  index_ = {.items = ids.shape(0),
            .leaves = leaves.shape(0) - 1,
            .levels = codes.shape(1),
            .item_ids = ids.data(),
            .semantic_ids = codes.data(),
            .order = checked_array<std::int32_t>("order", order, {ids.shape(0)}).data(),
            .position = checked_array<std::int32_t>("position", position, {ids.shape(0)}).data(),
            .leaf_items = leaves.data()};
}

py::tuple HeldItems::expand(const py::dict& beams, const py::array& constrained, const py::array& num_results,
                            const py::array& excluded, const py::array& excluded_offsets) const {
  const auto offsets = checked_array<std::int32_t>("offsets", entry(beams, "offsets"), {-1});
  const auto scores = checked_array<float>("scores", entry(beams, "scores"), {-1});
  const std::int64_t size = offsets.shape(0) - 1;
  const std::int64_t rows = scores.shape(0);
  check_offsets(offsets.data(), size, rows);
  const auto codes = checked_array<std::int32_t>("codes", entry(beams, "codes"), {rows, index_.levels});
  const auto leaves = checked_array<std::int32_t>("leaves", entry(beams, "leaves"), {rows});
  const auto bound = checked_array<std::uint8_t>("constrained", constrained, {size});
  const auto wanted = checked_array<std::int64_t>("num_results", num_results, {size});
  const auto gone = checked_array<std::int32_t>("excluded", excluded, {-1});
  const auto gone_offsets = checked_array<std::int32_t>("excluded_offsets", excluded_offsets, {size + 1});
  check_offsets(gone_offsets.data(), size, gone.shape(0));
  const RunBeams run = {.size = size,
                        .offsets = offsets.data(),
                        .scores = scores.data(),
                        .codes = codes.data(),
                        .leaves = leaves.data(),
                        .constrained = bound.data(),
                        .excluded = gone.data(),
                        .excluded_offsets = gone_offsets.data(),
                        .num_results = wanted.data()};
  require(std::all_of(run.num_results, run.num_results + size, [](std::int64_t count) { return count >= 0; }),
          "[bindings] got num_results below 0.");
  const py::ssize_t most = max_results(run);
  py::array_t<std::int64_t> items(most);
  py::array_t<std::int32_t> semantic_ids({most, py::ssize_t{index_.levels}});
  py::array_t<float> logprobs(most);
  py::array_t<bool> legal(most);
  py::array_t<std::int64_t> found_offsets(size + 1);
  const RunItems found = {.items = items.mutable_data(),
                          .semantic_ids = semantic_ids.mutable_data(),
                          .logprobs = logprobs.mutable_data(),
                          .legal = legal.mutable_data(),
                          .offsets = found_offsets.mutable_data()};
  {
    const LongLoop release(most);
    onerec::expand(run, index_, found);
  }
  const py::ssize_t count = found.offsets[size];
  return py::make_tuple(head(items, count), head(semantic_ids, count), head(logprobs, count), head(legal, count),
                        found_offsets);
}

void bind_held_items(py::module_& module) {
  module.def("find_ids", &find_ids, py::arg("ids"), py::arg("wanted"),
             "Where each of int64 `wanted` [m] is among int64 `ids` [n], ascending and distinct; -1: nowhere.");
  py::class_<HeldItems>(module, "ItemIndex", "The catalogue on the host, in the orders of ids and of the trie.")
      .def(py::init<const py::array&, const py::array&, const py::array&, const py::array&, const py::array&>(),
           py::arg("item_ids"), py::arg("semantic_ids"), py::arg("order"), py::arg("position"), py::arg("leaf_items"))
      .def("expand", &HeldItems::expand, py::arg("beams"), py::arg("constrained"), py::arg("num_results"),
           py::arg("excluded"), py::arg("excluded_offsets"),
           "Items of what Core.run answered: (items, semantic_ids, logprobs, legal, offsets), request by request.");
}

}  // namespace onerec::bindings
