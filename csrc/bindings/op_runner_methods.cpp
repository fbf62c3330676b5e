// The ops as methods of OpRunner, with their tensors as tuples.
#include <pybind11/stl.h>

#include <optional>
#include <tuple>

#include "bindings/op_runner.h"
#include "core/error.h"

namespace onerec::bindings {
namespace {

using Address = std::uintptr_t;
// (address, dtype name, rows, columns, stride in elements)
using MatrixTuple = std::tuple<Address, std::string, std::int64_t, std::int64_t, std::int64_t>;
// (values, "none" or "row" or "block", address of the scales, their stride)
using OperandTuple = std::tuple<MatrixTuple, std::string, Address, std::int64_t>;
// (scores, states, codes, ancestry of each earlier step)
using BeamsTuple = std::tuple<Address, Address, Address, std::vector<Address>>;
// (capacity, address of the live count or 0)
using ExtentTuple = std::tuple<std::int64_t, Address>;
using Weight = std::shared_ptr<OpWeight>;
using Trie = std::shared_ptr<OpTrie>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

DType parse_dtype(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kE4M3}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw ArgumentError(concat("[op_runner] got dtype '", name, "', want 'float32', 'bfloat16' or 'float8_e4m3'."));
}

Matrix matrix(const MatrixTuple& t) {
  return {pointer<void>(std::get<0>(t)), parse_dtype(std::get<1>(t)), std::get<2>(t), std::get<3>(t), std::get<4>(t)};
}

Matrix matrix(const std::optional<MatrixTuple>& t) { return t ? matrix(*t) : Matrix{}; }

Operand operand(const OperandTuple& t) {
  const std::string& kind = std::get<1>(t);
  Operand out{.values = matrix(std::get<0>(t))};
  if (kind == "none") return out;
  require(kind == "row" || kind == "block", "[op_runner] got scales per '", kind, "', want 'none', 'row' or 'block'.");
  out.scale_kind = kind == "row" ? ScaleKind::kPerRow : ScaleKind::kPerBlock;
  out.scales = pointer<float>(std::get<2>(t));
  out.scale_stride = std::get<3>(t);
  return out;
}

Operand operand(const std::optional<OperandTuple>& t) { return t ? operand(*t) : Operand{}; }

Extent extent(const ExtentTuple& t) { return {std::get<0>(t), pointer<const std::int32_t>(std::get<1>(t))}; }

BeamState beams(const BeamsTuple& t) {
  BeamState out{.scores = pointer<float>(std::get<0>(t)),
                .states = pointer<std::int32_t>(std::get<1>(t)),
                .codes = pointer<std::int32_t>(std::get<2>(t))};
  const auto& ancestry = std::get<3>(t);
  require(ancestry.size() <= kMaxLevels, "[op_runner] got ", ancestry.size(), " steps, want at most ", kMaxLevels, ".");
  for (std::size_t s = 0; s < ancestry.size(); ++s) out.ancestry[s] = pointer<std::int32_t>(ancestry[s]);
  return out;
}

void check_heads(std::int64_t width, std::int64_t heads, std::int64_t kv_heads) {
  require(heads >= 1 && kv_heads >= 1 && width % heads == 0, "[op_runner] got ", heads, " heads, ", kv_heads,
          " key/value heads and ", width, " columns, want a number of heads that divides the columns.");
}

void run_linear(OpRunner& runner, const OperandTuple& x, const Weight& weight, const MatrixTuple& y,
                const ExtentTuple& rows, Address bias, const std::optional<MatrixTuple>& residual) {
  runner.issue(linear,
               LinearParams{.x = operand(x),
                            .weight = weight->weight.get(),
                            .bias = pointer<const float>(bias),
                            .residual = matrix(residual),
                            .y = matrix(y),
                            .rows = extent(rows)},
               weight);
}

void run_grouped_linear(OpRunner& runner, const OperandTuple& x, const Weight& weight, Address offsets,
                        const MatrixTuple& y, std::int64_t rows_capacity, std::int64_t alignment) {
  runner.issue(grouped_linear,
               GroupedLinearParams{.x = operand(x),
                                   .weight = weight->weight.get(),
                                   .offsets = pointer<const std::int32_t>(offsets),
                                   .y = matrix(y),
                                   .rows_capacity = rows_capacity,
                                   .alignment = alignment},
               weight);
}

void run_rms_norm(OpRunner& runner, const MatrixTuple& x, Address gamma, std::int64_t width, double eps,
                  const ExtentTuple& rows, std::int64_t groups, double gamma_magnitude,
                  const std::optional<MatrixTuple>& y, const std::optional<OperandTuple>& quantized,
                  const std::optional<OperandTuple>& quantized_blocks) {
  runner.issue(rms_norm, RmsNormParams{.x = matrix(x),
                                       .gamma = pointer<const float>(gamma),
                                       .width = width,
                                       .groups = groups,
                                       .eps = static_cast<float>(eps),
                                       .gamma_magnitude = static_cast<float>(gamma_magnitude),
                                       .y = matrix(y),
                                       .quantized = operand(quantized),
                                       .quantized_blocks = operand(quantized_blocks),
                                       .rows = extent(rows)});
}

void run_quantize(OpRunner& runner, const MatrixTuple& x, const OperandTuple& quantized, const ExtentTuple& rows) {
  runner.issue(quantize, QuantizeParams{.x = matrix(x), .quantized = operand(quantized), .rows = extent(rows)});
}

void run_swiglu(OpRunner& runner, const MatrixTuple& gate_up, std::int64_t width, const ExtentTuple& rows,
                const std::optional<MatrixTuple>& y, const std::optional<OperandTuple>& quantized) {
  runner.issue(swiglu, SwigluParams{.gate_up = matrix(gate_up),
                                    .width = width,
                                    .y = matrix(y),
                                    .quantized = operand(quantized),
                                    .rows = extent(rows)});
}

void run_cross_attention(OpRunner& runner, const MatrixTuple& q, const MatrixTuple& k, const MatrixTuple& v,
                         const MatrixTuple& out, Address context_offsets, Address row_offsets, std::int64_t batch,
                         std::int64_t max_request_rows, std::int64_t max_request_tokens, std::int64_t heads,
                         std::int64_t kv_heads, double scale) {
  const Matrix queries = matrix(q);
  const Matrix keys = matrix(k);
  check_heads(queries.cols, heads, kv_heads);
  runner.issue(cross_attention, CrossAttentionParams{.q = queries,
                                                     .k = keys,
                                                     .v = matrix(v),
                                                     .context_offsets = pointer<const std::int32_t>(context_offsets),
                                                     .row_offsets = pointer<const std::int32_t>(row_offsets),
                                                     .out = matrix(out),
                                                     .batch = batch,
                                                     .rows_capacity = queries.rows,
                                                     .tokens_capacity = keys.rows,
                                                     .max_request_rows = max_request_rows,
                                                     .max_request_tokens = max_request_tokens,
                                                     .heads = heads,
                                                     .kv_heads = kv_heads,
                                                     .head_dim = queries.cols / heads,
                                                     .scale = static_cast<float>(scale)});
}

void run_self_attention(OpRunner& runner, const std::vector<MatrixTuple>& qkv, const std::vector<Address>& ancestry,
                        const std::optional<MatrixTuple>& out, std::int64_t heads, std::int64_t kv_heads, double scale,
                        const ExtentTuple& rows, const std::optional<OperandTuple>& quantized) {
  require(!qkv.empty() && qkv.size() <= kMaxLevels && ancestry.size() + 1 == qkv.size(), "[op_runner] got ", qkv.size(),
          " steps and ", ancestry.size(), " of ancestry, want 1 to ", kMaxLevels, " steps and one fewer of ancestry.");
  SelfAttentionParams params{.step = static_cast<int>(ancestry.size()),
                             .out = matrix(out),
                             .quantized = operand(quantized),
                             .heads = heads,
                             .kv_heads = kv_heads,
                             .scale = static_cast<float>(scale),
                             .rows = extent(rows)};
  const std::int64_t width = out ? params.out.cols : params.quantized.values.cols;
  check_heads(width, heads, kv_heads);
  params.head_dim = width / heads;
  for (std::size_t s = 0; s < qkv.size(); ++s) params.qkv[s] = matrix(qkv[s]);
  for (std::size_t s = 0; s < ancestry.size(); ++s) params.ancestry[s] = pointer<const std::int32_t>(ancestry[s]);
  runner.issue(self_attention, params);
}

void run_route(OpRunner& runner, const MatrixTuple& logits, Address bias, std::int64_t experts, std::int64_t top_k,
               const std::string& score, bool normalize, double scaling_factor, std::int64_t alignment,
               Address selected, Address weights, Address offsets, Address slots, Address sources,
               const ExtentTuple& rows) {
  require(score == "sigmoid" || score == "softmax", "[op_runner] got score '", score,
          "', want 'sigmoid' or 'softmax'.");
  runner.issue(route, RouteParams{.logits = matrix(logits),
                                  .bias = pointer<const float>(bias),
                                  .experts = experts,
                                  .top_k = top_k,
                                  .score = score == "sigmoid" ? RouterScore::kSigmoid : RouterScore::kSoftmax,
                                  .normalize = normalize ? RouterNormalize::kSum : RouterNormalize::kNone,
                                  .scaling_factor = static_cast<float>(scaling_factor),
                                  .alignment = alignment,
                                  .selected = pointer<std::int32_t>(selected),
                                  .weights = pointer<float>(weights),
                                  .offsets = pointer<std::int32_t>(offsets),
                                  .slots = pointer<std::int32_t>(slots),
                                  .sources = pointer<std::int32_t>(sources),
                                  .rows = extent(rows)});
}

void run_gather_rows(OpRunner& runner, const OperandTuple& x, Address sources, const OperandTuple& sorted,
                     const ExtentTuple& sorted_rows) {
  runner.issue(gather_rows, GatherRowsParams{.x = operand(x),
                                             .sources = pointer<const std::int32_t>(sources),
                                             .sorted = operand(sorted),
                                             .sorted_rows = extent(sorted_rows)});
}

void run_moe_combine(OpRunner& runner, const MatrixTuple& expert_out, Address slots, Address weights,
                     std::int64_t top_k, const MatrixTuple& h, const ExtentTuple& rows,
                     const std::optional<MatrixTuple>& shared) {
  runner.issue(moe_combine, MoeCombineParams{.expert_out = matrix(expert_out),
                                             .slots = pointer<const std::int32_t>(slots),
                                             .weights = pointer<const float>(weights),
                                             .top_k = top_k,
                                             .shared = matrix(shared),
                                             .h = matrix(h),
                                             .rows = extent(rows)});
}

void run_beam_select(OpRunner& runner, int level, int levels, const MatrixTuple& logits, std::int64_t codebook,
                     Address row_offsets, Address next_offsets, std::int64_t batch, std::int64_t next_capacity,
                     std::int64_t max_request_rows, std::int64_t max_request_next, const BeamsTuple& current,
                     const BeamsTuple& next, Address status, Address constrained, const Trie& trie) {
  const Matrix values = matrix(logits);
  runner.issue(beam_select,
               BeamSelectParams{.level = level,
                                .levels = levels,
                                .logits = values,
                                .codebook = codebook,
                                .batch = batch,
                                .rows_capacity = values.rows,
                                .next_capacity = next_capacity,
                                .max_request_rows = max_request_rows,
                                .max_request_next = max_request_next,
                                .row_offsets = pointer<const std::int32_t>(row_offsets),
                                .next_offsets = pointer<const std::int32_t>(next_offsets),
                                .constrained = pointer<const std::uint8_t>(constrained),
                                .trie = trie == nullptr ? nullptr : trie->trie->table(),
                                .current = beams(current),
                                .next = beams(next),
                                .status = pointer<std::int32_t>(status)},
               trie);
}

std::int64_t check_edges(const ItemTrie& trie, int level) {
  require(level >= 0 && level < trie.levels(), "[op_runner] got level ", level, ", want 0 to ", trie.levels() - 1, ".");
  return trie.edges(level);
}

}  // namespace

void bind_op_runner(py::module_& module) {
  using py::arg;
  py::class_<OpWeight, Weight>(module, "OpWeight", "A linear's weight as the backend keeps it.")
      .def_property_readonly("bytes", [](const OpWeight& weight) { return weight.weight->bytes; });
  py::class_<OpTrie, Trie>(module, "OpTrie", "A catalogue's trie on the device.")
      .def(
          "edges", [](const OpTrie& trie, int level) { return check_edges(*trie.trie, level); }, arg("level"),
          "How many edges a level has.");
  py::class_<OpRecording, std::shared_ptr<OpRecording>>(module, "OpRecording", "Ops recorded by OpRunner.record.");
  py::class_<OpRunner>(module, "OpRunner", "Issues single ops on tensors given by address; for profiling and tests.")
      .def(py::init<const std::string&, int>(), arg("device"), arg("threads") = 0)
      .def_property_readonly("device_name", &OpRunner::device_name)
      .def("stream_handle", &OpRunner::stream_handle, "The stream as an integer: a cudaStream_t; 0 on a CPU.")
      .def("synchronize", &OpRunner::synchronize, "Waits for everything issued so far.")
      .def("poison", &OpRunner::poison, arg("value"), "Overwrites the workspace with a byte.")
      .def("record", &OpRunner::record, arg("body"),
           "Calls body() twice, to measure and to record the ops that it issues; runs nothing.")
      .def("replay", &OpRunner::replay, arg("recording"), "Issues a recording.")
      .def("pack_linear", &OpRunner::pack_linear, arg("values"), py::kw_only(), arg("dtype"), arg("format"),
           arg("experts") = 1, arg("outputs"), arg("inputs"), arg("scales") = py::none(),
           "A weight from its raw bytes (uint8, contiguous [experts, outputs, inputs]) and, for codes, float32 scales.")
      .def("make_trie", &OpRunner::make_trie, arg("semantic_ids"), arg("codebook_sizes"),
           "The trie of int32 [items, levels].")
      .def("grouped_alignment", &OpRunner::grouped_alignment, arg("rows"), arg("experts"), arg("top_k"),
           "What grouped_linear and route take as alignment for so many rows before routing.")
      .def("linear", &run_linear, arg("x"), arg("weight"), arg("y"), arg("rows"), py::kw_only(), arg("bias") = 0,
           arg("residual") = py::none())
      .def("grouped_linear", &run_grouped_linear, arg("x"), arg("weight"), arg("offsets"), arg("y"),
           arg("rows_capacity"), py::kw_only(), arg("alignment") = 1)
      .def("rms_norm", &run_rms_norm, arg("x"), arg("gamma"), arg("width"), arg("eps"), arg("rows"), py::kw_only(),
           arg("groups") = 1, arg("gamma_magnitude") = -1.0, arg("y") = py::none(), arg("quantized") = py::none(),
           arg("quantized_blocks") = py::none())
      .def("quantize", &run_quantize, arg("x"), arg("quantized"), arg("rows"))
      .def("swiglu", &run_swiglu, arg("gate_up"), arg("width"), arg("rows"), py::kw_only(), arg("y") = py::none(),
           arg("quantized") = py::none())
      .def("cross_attention", &run_cross_attention, arg("q"), arg("k"), arg("v"), arg("out"), py::kw_only(),
           arg("context_offsets"), arg("row_offsets"), arg("batch"), arg("max_request_rows"), arg("max_request_tokens"),
           arg("heads"), arg("kv_heads"), arg("scale"))
      .def("self_attention", &run_self_attention, arg("qkv"), arg("ancestry"), arg("out"), py::kw_only(), arg("heads"),
           arg("kv_heads"), arg("scale"), arg("rows"), arg("quantized") = py::none())
      .def("route", &run_route, arg("logits"), arg("bias"), py::kw_only(), arg("experts"), arg("top_k"), arg("score"),
           arg("normalize"), arg("scaling_factor"), arg("alignment"), arg("selected"), arg("weights"), arg("offsets"),
           arg("slots"), arg("sources"), arg("rows"))
      .def("gather_rows", &run_gather_rows, arg("x"), arg("sources"), arg("sorted"), arg("sorted_rows"))
      .def("moe_combine", &run_moe_combine, arg("expert_out"), arg("slots"), arg("weights"), arg("top_k"), arg("h"),
           arg("rows"), py::kw_only(), arg("shared") = py::none())
      .def("beam_select", &run_beam_select, py::kw_only(), arg("level"), arg("levels"), arg("logits"), arg("codebook"),
           arg("row_offsets"), arg("next_offsets"), arg("batch"), arg("next_capacity"), arg("max_request_rows"),
           arg("max_request_next"), arg("current"), arg("next"), arg("status"), arg("constrained") = 0,
           arg("trie") = py::none());
}

}  // namespace onerec::bindings
