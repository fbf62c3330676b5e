#include "bindings/core.h"

#include <utility>

#include "backends/registry.h"
#include "bindings/arrays.h"
#include "bindings/config_reader.h"
#include "core/bfloat16.h"
#include "model/onerec_v2.h"

namespace onerec::bindings {
namespace {

TensorDType parse_dtype(const std::string& name) {
  if (name == "F32") return TensorDType::kF32;
  if (name == "F16") return TensorDType::kF16;
  if (name == "BF16") return TensorDType::kBF16;
  require(name == "F8_E4M3", "[weights] got dtype ", name, ", want F32, F16, BF16 or F8_E4M3.");
  return TensorDType::kE4M3;
}

std::int64_t size_of(TensorDType dtype) { return dtype == TensorDType::kF32 ? 4 : dtype == TensorDType::kE4M3 ? 1 : 2; }

const char* kind_name(TensorSpec::Kind kind) {
  switch (kind) {
    case TensorSpec::Kind::kVector:
      return "vector";
    case TensorSpec::Kind::kTable:
      return "table";
    case TensorSpec::Kind::kLinear:
      return "linear";
    case TensorSpec::Kind::kLinearFp8Channel:
      return "linear_fp8_channel";
    case TensorSpec::Kind::kLinearFp8Block:
      return "linear_fp8_block";
  }
  throw InternalError("unknown tensor kind");
}

// A batch together with the arrays that it points into.
struct HeldBatch {
  Batch batch;
  std::vector<py::object> arrays;

  template <class T>
  const T* take(const py::dict& from, const std::string& name, std::initializer_list<std::int64_t> shape) {
    require(from.contains(name), "[bindings] the batch lacks ", name, ".");
    auto array = checked_array<T>(name, from[name.c_str()], shape);
    const T* data = array.data();
    arrays.push_back(std::move(array));
    return data;
  }
};

std::int64_t rows_of(const py::dict& batch, const std::string& name) {
  require(batch.contains(name) && py::isinstance<py::array>(batch[name.c_str()]), "[bindings] the batch lacks ", name,
          ".");
  const auto array = py::reinterpret_borrow<py::array>(batch[name.c_str()]);
  require(array.ndim() > 0, "[bindings] got ", name, " without an axis.");
  return array.shape(0);
}

HeldBatch read_batch(const py::dict& from, const InputSchema& schema, const std::vector<std::string>& names) {
  HeldBatch held;
  Batch& batch = held.batch;
  const std::int64_t levels = schema.levels();
  batch.size = rows_of(from, "widths");
  batch.widths = held.take<std::int32_t>(from, "widths", {batch.size, levels});
  batch.context_offsets = held.take<std::int32_t>(from, "context_offsets", {batch.size + 1});
  batch.constrained = held.take<std::uint8_t>(from, "constrained", {batch.size});
  batch.excluded_offsets = held.take<std::int32_t>(from, "excluded_offsets", {batch.size + 1});
  batch.excluded = held.take<std::int32_t>(from, "excluded", {batch.excluded_offsets[batch.size]});
  for (std::size_t p = 0; p < names.size(); ++p) {
    const auto& fields = schema.pathways[p];
    const std::string prefix = names[p] + ".";
    PathwayBatch& pathway = batch.pathways.emplace_back();
    pathway.tokens = rows_of(from, prefix + "rows");
    pathway.rows = held.take<std::int32_t>(from, prefix + "rows", {pathway.tokens});
    pathway.positions = held.take<std::int32_t>(from, prefix + "positions", {pathway.tokens});
    if (fields.items) pathway.codes = held.take<std::int32_t>(from, prefix + "codes", {pathway.tokens, levels});
    if (fields.num_categorical() > 0) {
      pathway.categorical =
          held.take<std::int32_t>(from, prefix + "categorical", {pathway.tokens, fields.num_categorical()});
    }
    if (fields.dense_columns > 0)
      pathway.dense = held.take<float>(from, prefix + "dense", {pathway.tokens, fields.dense_columns});
  }
  if (from.contains("forced")) {
    std::int64_t rows = 0;
    for (std::int64_t b = 0; b < batch.size; ++b) rows += batch.widths[b * levels];
    batch.forced = held.take<std::int32_t>(from, "forced", {rows, levels});
  }
  return held;
}

py::dict to_dict(const BatchResult& result, std::int64_t levels) {
  py::dict out;
  out["offsets"] = to_array(result.offsets);
  out["scores"] = to_array(result.scores);
  out["codes"] =
      to_array(result.codes, {static_cast<py::ssize_t>(result.scores.size()), static_cast<py::ssize_t>(levels)});
  out["leaves"] = to_array(result.leaves);
  out["status"] = to_array(result.status);
  return out;
}

py::dict to_dict(const MemoryPlan& plan) {
  py::dict out;
  out["weights"] = plan.weights;
  out["catalogue"] = plan.catalogue;
  for (const auto& [purpose, bytes] : plan.arena_ledger) out[purpose.c_str()] = bytes;
  out["arena"] = plan.arena;
  out["pinned"] = plan.pinned;
  out["total"] = plan.total();
  return out;
}

// Copies every operand it sees. Called without the GIL.
class RecordingTap final : public OperandTap {
 public:
  struct Operand {
    std::string weight;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    bool codes = false;
    std::vector<float> values;
    std::vector<std::uint8_t> bytes;
    std::vector<float> scales;  // [rows, blocks]
    std::int64_t blocks = 0;
  };
  std::vector<Operand> operands;

  void observe(std::string_view weight, const onerec::Operand& operand, std::int64_t rows) override {
    const Matrix& values = operand.values;
    Operand& seen = operands.emplace_back();
    seen.weight = weight;
    seen.rows = rows;
    seen.cols = values.cols;
    seen.codes = operand.quantized();
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < values.cols; ++c) {
        if (seen.codes) {
          seen.bytes.push_back(values.row<std::uint8_t>(r)[c]);
        } else if (values.dtype == DType::kF32) {
          seen.values.push_back(values.row<float>(r)[c]);
        } else {
          seen.values.push_back(to_float(values.row<BFloat16>(r)[c]));
        }
      }
    }
    if (!seen.codes) return;
    seen.blocks = operand.scale_kind == ScaleKind::kPerRow ? 1 : scale_blocks(values.cols);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t b = 0; b < seen.blocks; ++b)
        seen.scales.push_back(operand.scales[b * operand.scale_stride + r]);
    }
  }
};

}  // namespace

Core::Core(const py::dict& config, const CoreOptions& options) {
  const OneRecV2Config model_config = read_config(config);
  for (const auto& pathway : model_config.pathways) pathway_names_.push_back(pathway.name);
  const py::gil_scoped_release release;
  auto backend = make_backend(options.device, options.threads);
  device_name_ = backend->device().name();
  auto model = std::make_unique<OneRecV2>(model_config, Precision::parse(options.precision, options.experts), *backend);
  engine_ = std::make_shared<GenerationEngine>(std::move(backend), std::move(model), options.engine);
}

Core::~Core() { close(); }

void Core::close() {
  auto engine = std::exchange(engine_, nullptr);
  const py::gil_scoped_release release;
  engine.reset();
}

std::shared_ptr<GenerationEngine> Core::engine() const {
  if (engine_ == nullptr) throw StateError("[engine] it is closed. Make a new one.");
  return engine_;
}

py::list Core::tensors() const {
  py::list out;
  for (const auto& spec : engine()->weights().specs()) {
    const py::tuple shape =
        spec.rows == 0 ? py::tuple(py::make_tuple(spec.cols)) : py::tuple(py::make_tuple(spec.rows, spec.cols));
    out.append(py::make_tuple(spec.name, shape, kind_name(spec.kind)));
  }
  return out;
}

void Core::set_tensor(const std::string& name, const py::array& values, const std::string& dtype,
                      const std::optional<py::array>& scales) {
  const auto engine = this->engine();
  const TensorSpec* spec = nullptr;
  for (const auto& candidate : engine->weights().specs()) {
    if (candidate.name == name) spec = &candidate;
  }
  require(spec != nullptr, "[weights] got tensor ", name, ", which this model does not have.");
  TensorSource source{.dtype = parse_dtype(dtype)};
  const std::int64_t rows = spec->rows == 0 ? 1 : spec->rows;
  const auto bytes = checked_array<std::uint8_t>(name, values, {rows * spec->cols * size_of(source.dtype)});
  source.values = bytes.data();
  py::array_t<float> held;
  if (source.dtype == TensorDType::kE4M3) {
    require(scales.has_value(), "[weights] got ", name, " as E4M3 codes without scales.");
    held = spec->kind == TensorSpec::Kind::kLinearFp8Block
               ? checked_array<float>(name + "_scale", *scales, {scale_blocks(rows), scale_blocks(spec->cols)})
               : checked_array<float>(name + "_scale", *scales, {rows});
    source.scales = held.data();
  }
  const py::gil_scoped_release release;
  engine->set_tensor(name, source);
}

void Core::finish_loading() {
  const auto engine = this->engine();
  const py::gil_scoped_release release;
  engine->finish_loading();
}

py::array_t<std::int64_t> Core::set_catalogue(const py::array& semantic_ids) {
  const auto engine = this->engine();
  const auto codes = checked_array<std::int32_t>("semantic_ids", semantic_ids, {-1, engine->schema().levels()});
  const std::int32_t* data = codes.data();
  const std::int64_t items = codes.shape(0);
  {
    const py::gil_scoped_release release;
    engine->set_catalogue(data, items);
  }
  return to_array(engine->catalogue()->order());
}

py::array_t<std::int32_t> Core::leaf_items() const {
  const auto engine = this->engine();
  if (engine->catalogue() == nullptr) throw StateError("[engine] no catalogue is set.");
  return to_array(engine->catalogue()->leaf_items());
}

py::dict Core::run_with(const py::dict& batch, bool directly, OperandTap* tap) {
  const auto engine = this->engine();
  const HeldBatch held = read_batch(batch, engine->schema(), pathway_names_);
  BatchResult result;
  {
    const py::gil_scoped_release release;
    directly ? engine->run_directly(held.batch, result, tap) : engine->run(held.batch, result);
  }
  return to_dict(result, engine->schema().levels());
}

py::dict Core::run(const py::dict& batch) { return run_with(batch, false, nullptr); }

py::dict Core::run_directly(const py::dict& batch) { return run_with(batch, true, nullptr); }

py::tuple Core::run_tapped(const py::dict& batch) {
  RecordingTap tap;
  py::dict result = run_with(batch, true, &tap);
  py::list operands;
  for (const auto& seen : tap.operands) {
    const std::vector<py::ssize_t> shape = {seen.rows, seen.cols};
    const py::object values =
        seen.codes ? py::object(to_array(seen.bytes, shape)) : py::object(to_array(seen.values, shape));
    operands.append(
        py::make_tuple(seen.weight, values, to_array(seen.scales, {seen.codes ? seen.rows : 0, seen.blocks})));
  }
  return py::make_tuple(result, operands);
}

void Core::prepare(const py::dict& batch) {
  const auto engine = this->engine();
  const HeldBatch held = read_batch(batch, engine->schema(), pathway_names_);
  const py::gil_scoped_release release;
  engine->prepare(held.batch);
}

py::dict Core::memory_plan() const {
  const auto engine = this->engine();
  MemoryPlan plan;
  {
    const py::gil_scoped_release release;
    plan = engine->memory_plan();
  }
  return to_dict(plan);
}

py::dict Core::plan_for(const py::dict& batch) const {
  const auto engine = this->engine();
  const HeldBatch held = read_batch(batch, engine->schema(), pathway_names_);
  MemoryPlan plan;
  {
    const py::gil_scoped_release release;
    plan = engine->plan_for(held.batch);
  }
  return to_dict(plan);
}

void Core::poison(int value) {
  const auto engine = this->engine();
  const py::gil_scoped_release release;
  engine->poison(value);
}

}  // namespace onerec::bindings
