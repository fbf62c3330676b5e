#include "bindings/packer.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/long_loop.h"
#include "engine/search_settings.h"

namespace onerec::bindings {
namespace {

// The arrays of a batch, and those that point into them.
class BatchReader {
 public:
  template <class T>
  const T* take(const std::string& name, const py::handle& object, std::initializer_list<std::int64_t> shape) {
    auto array = checked_array<T>(name, plain_array<T>(object), shape);
    const T* data = array.data();
    held_.append(std::move(array));
    return data;
  }

  ItemLists take_lists(const std::string& name, const py::handle& object, std::int64_t size) {
    const auto pair = py::reinterpret_borrow<py::tuple>(object);
    const auto ids = checked_array<std::int64_t>(name, plain_array<std::int64_t>(pair[0]), {-1});
    held_.append(ids);
    return {.count = ids.shape(0),
            .ids = ids.data(),
            .offsets = take<std::int64_t>(name + ".offsets", pair[1], {size + 1})};
  }

  // NumPy's bool is a byte, which need not be 0 or 1.
  const std::uint8_t* take_flags(const std::string& name, const py::handle& object, std::int64_t size) {
    return reinterpret_cast<const std::uint8_t*>(take<bool>(name, object, {size}));
  }

  FieldValues take_field(const std::string& name, const py::handle& object, std::int64_t rows, std::int64_t columns) {
    if (columns == 0) return {.categorical = take<std::int64_t>(name, object, {rows})};
    return {.dense = take<float>(name, object, {rows, columns})};
  }

  py::list held() { return held_; }

 private:
  py::list held_;
};

PathwayPacking read_pathway(const Packer::Pathway& from, std::size_t sources) {
  const auto& [name, source, max_tokens, positions, fields] = from;
  require(source < static_cast<int>(sources), "[bindings] pathway ", name, ": got source ", source, ".");
  return {.source = source,
          .max_tokens = max_tokens,
          .positions = positions == "recency" ? PositionOrder::kNewestFirst : PositionOrder::kOldestFirst,
          .fields = fields};
}

py::array_t<std::int64_t> sizes_of(const std::vector<std::int64_t>& offsets) {
  py::array_t<std::int64_t> sizes(static_cast<py::ssize_t>(offsets.size()) - 1);
  for (std::size_t i = 0; i + 1 < offsets.size(); ++i) sizes.mutable_data()[i] = offsets[i + 1] - offsets[i];
  return sizes;
}

// A new array in `out`, whose memory it returns.
template <class T>
T* add_array(py::dict& out, const std::string& name, std::vector<py::ssize_t> shape) {
  py::array_t<T> array(std::move(shape));
  T* data = array.mutable_data();
  out[py::str(name)] = std::move(array);
  return data;
}

RunArrays::Pathway add_pathway(py::dict& out, const std::string& name, const PathwayPacking& pathway,
                               std::int64_t tokens, std::int64_t levels) {
  RunArrays::Pathway to;
  to.positions = add_array<std::int32_t>(out, name + ".positions", {tokens});
  to.rows = add_array<std::int32_t>(out, name + ".rows", {tokens});
  to.categorical = add_array<std::int32_t>(out, name + ".categorical", {tokens, pathway.num_categorical()});
  to.dense = add_array<float>(out, name + ".dense", {tokens, pathway.dense_columns()});
  if (pathway.source != PathwayPacking::kStatic)
    to.codes = add_array<std::int32_t>(out, name + ".codes", {tokens, levels});
  return to;
}

py::tuple check_settings(const py::array& widths, const py::array& num_results, std::int64_t max_width,
                         std::int64_t call_results, std::int64_t default_results) {
  const auto wide = checked_array<std::int64_t>("widths", plain_array<std::int64_t>(widths), {-1, -1});
  const std::int64_t size = wide.shape(0);
  const auto asked = checked_array<std::int64_t>("num_results", plain_array<std::int64_t>(num_results), {size});
  py::array_t<std::int64_t> filled(size);
  std::copy_n(asked.data(), size, filled.mutable_data());
  const CallSettings call = {.max_width = max_width, .num_results = call_results, .default_results = default_results};
  const std::int64_t wrong_width = first_wrong_width(wide.data(), size, wide.shape(1), max_width);
  const std::int64_t wrong_results = fill_num_results(wide.data(), size, wide.shape(1), call, filled.mutable_data());
  return py::make_tuple(filled, wrong_width, wrong_results);
}

}  // namespace

HeldRequests::HeldRequests(py::tuple held, std::shared_ptr<const std::vector<std::string>> names, PackedRequests packed)
    : held_(std::move(held)), names_(std::move(names)), packed_(std::move(packed)) {}

py::dict HeldRequests::arrays(const py::array& chosen) const {
  const auto requests = checked_array<std::int64_t>("chosen", chosen, {-1});
  const std::int64_t count = requests.shape(0);
  const std::int64_t* data = requests.data();
  const RunSizes sizes = packed_.measure(data, count);
  py::dict out;
  RunArrays to;
  std::int64_t tokens = 0;
  for (std::size_t p = 0; p < names_->size(); ++p) {
    tokens += sizes.tokens[p];
    to.pathways.push_back(
        add_pathway(out, (*names_)[p], packed_.rules().pathways[p], sizes.tokens[p], packed_.levels()));
  }
  to.context_offsets = add_array<std::int32_t>(out, "context_offsets", {count + 1});
  to.widths = add_array<std::int32_t>(out, "widths", {count, packed_.levels()});
  to.constrained = add_array<std::uint8_t>(out, "constrained", {count});
  to.excluded = add_array<std::int32_t>(out, "excluded", {sizes.excluded});
  to.excluded_offsets = add_array<std::int32_t>(out, "excluded_offsets", {count + 1});
  {
    const LongLoop release(tokens + sizes.excluded);
    packed_.write(data, count, to);
  }
  return out;
}

Packer::Packer(py::object items, const std::vector<Pathway>& pathways, std::size_t sources,
               std::vector<std::int64_t> max_widths, std::vector<std::int64_t> max_free_widths)
    : held_items_(std::move(items)), index_(held_items_.cast<const HeldItems&>().index()) {
  auto names = std::make_shared<std::vector<std::string>>();
  rules_.num_sources = sources;
  rules_.max_widths = std::move(max_widths);
  rules_.max_free_widths = std::move(max_free_widths);
  for (const Pathway& pathway : pathways) {
    names->push_back(std::get<0>(pathway));
    rules_.pathways.push_back(read_pathway(pathway, sources));
  }
  names_ = std::move(names);
}

HeldRequests Packer::pack(const py::object& self, const py::sequence& sources, const py::tuple& exclude,
                          const py::sequence& features, const py::array& widths, const py::array& constrained,
                          const py::array& exclude_history) {
  const auto& packer = self.cast<const Packer&>();
  const PackingRules& rules = packer.rules_;
  require(sources.size() == rules.num_sources, "[bindings] got ", sources.size(), " sources.");
  BatchReader reader;
  RequestArrays batch;
  batch.size = widths.ndim() == 2 ? widths.shape(0) : 0;
  const auto levels = static_cast<std::int64_t>(rules.max_widths.size());
  batch.widths = reader.take<std::int64_t>("widths", widths, {batch.size, levels});
  batch.constrained = reader.take_flags("constrained", constrained, batch.size);
  batch.exclude_history = reader.take_flags("exclude_history", exclude_history, batch.size);
  batch.exclude = reader.take_lists("exclude", exclude, batch.size);
  std::int64_t ids = batch.exclude.count;
  for (std::size_t s = 0; s < rules.num_sources; ++s) {
    batch.sources.push_back(reader.take_lists("source", sources[s], batch.size));
    ids += batch.sources.back().count;
  }
  std::size_t next = 0;
  for (const PathwayPacking& pathway : rules.pathways) {
    const bool is_static = pathway.source == PathwayPacking::kStatic;
    const std::int64_t rows = is_static ? batch.size : batch.sources[static_cast<std::size_t>(pathway.source)].count;
    auto& fields = batch.features.emplace_back();
    for (const std::int64_t columns : pathway.fields) {
      require(next < features.size(), "[bindings] got ", features.size(), " features.");
      fields.push_back(reader.take_field("feature", features[next++], rows, columns));
    }
  }
  std::optional<PackedRequests> packed;
  {
    const LongLoop release(ids);
    packed.emplace(batch, rules, packer.index_);
  }
  return {py::make_tuple(self, reader.held()), packer.names_, std::move(*packed)};
}

void bind_packer(py::module_& module) {
  module.def(
      "check_settings", &check_settings, py::arg("widths"), py::arg("num_results"), py::arg("max_width"),
      py::arg("call_results"), py::arg("default_results"),
      "num_results int64 [B] without -1; the first request with a wrong width of int64 [B, levels], and the first "
      "with a wrong number of results, or -1.");
  py::class_<HeldRequests>(module, "PackedRequests", "Requests ready to be cut into runs; made by Packer.")
      .def_property_readonly("size", [](const HeldRequests& held) { return held.packed().size(); })
      .def_property_readonly(
          "widths",
          [](const HeldRequests& held) {
            return to_array(held.packed().widths(), {held.packed().size(), held.packed().levels()});
          },
          "int32 [B, levels], no wider than the search can use.")
      .def_property_readonly(
          "context_sizes", [](const HeldRequests& held) { return to_array(held.packed().context_sizes()); },
          "int64 [B], tokens of all pathways.")
      .def_property_readonly(
          "excluded_sizes", [](const HeldRequests& held) { return sizes_of(held.packed().excluded_offsets()); },
          "int64 [B], how many trie positions each request excludes.")
      .def_property_readonly(
          "unknown", [](const HeldRequests& held) { return to_array(held.packed().unknown()); },
          "int64 [B], item ids that the catalogue does not have.")
      .def_property_readonly(
          "truncated", [](const HeldRequests& held) { return to_array(held.packed().truncated()); },
          "int64 [B], known item ids that no pathway had room for.")
      .def("arrays", &HeldRequests::arrays, py::arg("chosen"),
           "What Core.run takes for the requests `chosen`, int64 [b], in that order.");
  py::class_<Packer>(module, "Packer", "How a model and a catalogue make runs of requests.")
      .def(py::init<py::object, const std::vector<Packer::Pathway>&, std::size_t, std::vector<std::int64_t>,
                    std::vector<std::int64_t>>(),
           py::arg("items"), py::arg("pathways"), py::arg("sources"), py::arg("max_widths"), py::arg("max_free_widths"))
      .def("pack", &Packer::pack, py::arg("sources"), py::arg("exclude"), py::arg("features"), py::arg("widths"),
           py::arg("constrained"), py::arg("exclude_history"), "Looks items up, and keeps what runs are written from.");
}

}  // namespace onerec::bindings
