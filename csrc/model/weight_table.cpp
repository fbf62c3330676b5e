#include "model/weight_table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "core/bfloat16.h"
#include "core/error.h"
#include "core/float8.h"
#include "model/static_scale.h"
#include "ops/quantize_weight.h"

namespace onerec {
namespace {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(magnitude) | sign);
}

// Values [begin, begin + count) of a dense source as FP32.
void read_floats(const TensorSource& source, std::int64_t begin, std::int64_t count, float* out) {
  switch (source.dtype) {
    case TensorDType::kF32:
      std::memcpy(out, static_cast<const float*>(source.values) + begin,
                  static_cast<std::size_t>(count) * sizeof(float));
      return;
    case TensorDType::kBF16: {
      const auto* in = static_cast<const BFloat16*>(source.values) + begin;
      for (std::int64_t i = 0; i < count; ++i) out[i] = to_float(in[i]);
      return;
    }
    case TensorDType::kF16: {
      const auto* in = static_cast<const std::uint16_t*>(source.values) + begin;
      for (std::int64_t i = 0; i < count; ++i) out[i] = half_to_float(in[i]);
      return;
    }
    case TensorDType::kE4M3:
      break;
  }
  throw InternalError("read_floats of codes");
}

// A dense source stored as `dtype`, `rows` rows of `cols`, into rows `stride` elements apart.
void store_rows(const TensorSource& source, std::int64_t rows, std::int64_t cols, DType dtype, std::int64_t stride,
                void* out) {
  std::vector<float> row(static_cast<std::size_t>(cols));
  for (std::int64_t r = 0; r < rows; ++r) {
    read_floats(source, r * cols, cols, row.data());
    if (dtype == DType::kF32) {
      std::memcpy(static_cast<float*>(out) + r * stride, row.data(), row.size() * sizeof(float));
    } else {
      auto* to = static_cast<BFloat16*>(out) + r * stride;
      for (std::int64_t c = 0; c < cols; ++c) to[c] = to_bfloat16(row[static_cast<std::size_t>(c)]);
    }
  }
}

TensorSpec::Kind kind_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kDense:
      return TensorSpec::Kind::kLinear;
    case WeightFormat::kFp8Channel:
      return TensorSpec::Kind::kLinearFp8Channel;
    case WeightFormat::kFp8Block:
      return TensorSpec::Kind::kLinearFp8Block;
  }
  throw InternalError("unknown weight format");
}

}  // namespace

struct WeightTable::Vector {
  std::vector<float> staging;
  std::size_t missing = 0;
  std::vector<std::int64_t> offsets;  // of each tensor
  DeviceArray array;
};

struct WeightTable::Table {
  DType dtype = DType::kF32;
  DeviceArray array;
};

struct WeightTable::Linear {
  LinearWeightSource source;  // its pointers are set when it is packed
  std::vector<Part> parts;
  const DeviceArray* gated_norm = nullptr;
  std::size_t missing = 0;
  std::vector<std::byte> values;  // staging, from the first part to packing
  std::vector<float> scales;
  std::unique_ptr<LinearWeight> weight;
};

WeightTable::WeightTable(Backend& backend) : backend_(backend), stream_(backend.device().make_stream()) {}
WeightTable::~WeightTable() = default;

void WeightTable::add_spec(TensorSpec spec, Entry entry) {
  entry.rows = spec.rows;
  entry.cols = spec.cols;
  ensure(entries_.emplace(spec.name, entry).second, "tensor ", spec.name, " is declared twice");
  specs_.push_back(std::move(spec));
}

const DeviceArray& WeightTable::add_vector(const std::vector<std::string>& names,
                                           const std::vector<std::int64_t>& lengths, std::int64_t length) {
  auto& vector = *vectors_.emplace_back(std::make_unique<Vector>());
  vector.staging.assign(static_cast<std::size_t>(length), 0.0f);
  vector.missing = names.size();
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    vector.offsets.push_back(offset);
    add_spec({names[i], 0, lengths[i], TensorSpec::Kind::kVector}, {.vector = &vector, .part = i});
    offset += lengths[i];
  }
  ensure(offset <= length, "vector ", names.front(), " is longer than its place");
  return vector.array;
}

const DeviceArray& WeightTable::add_table(const std::string& name, std::int64_t rows, std::int64_t cols, DType dtype,
                                          TableShape shape) {
  auto& table = *tables_.emplace_back(std::make_unique<Table>());
  table.dtype = dtype;
  add_spec({name, shape == TableShape::kVector ? 0 : rows, cols, TensorSpec::Kind::kTable}, {.table = &table});
  return table.array;
}

const std::unique_ptr<LinearWeight>& WeightTable::add_linear(const std::string& name, std::int64_t experts,
                                                             std::int64_t outputs, std::int64_t inputs,
                                                             WeightFormat format, DType dtype,
                                                             const std::vector<Part>& parts,
                                                             const DeviceArray* gated_norm) {
  auto& linear = *linears_.emplace_back(std::make_unique<Linear>());
  linear.source = {.name = name,
                   .experts = experts,
                   .outputs = outputs,
                   .inputs = inputs,
                   .format = format,
                   .dtype = format == WeightFormat::kDense ? dtype : DType::kE4M3};
  linear.parts = parts;
  linear.missing = parts.size();
  linear.gated_norm = gated_norm;
  const std::string reason = backend_.why_not(linear.source);
  require(reason.empty(), "[", name, "] ", reason);
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    ensure(part.expert < experts && part.row + part.rows <= outputs && part.cols <= inputs, "part ", part.name,
           " leaves ", name);
    ensure(format != WeightFormat::kFp8Block || part.row % kScaleBlock == 0, "part ", part.name,
           " starts inside a block");
    add_spec({part.name, part.rows, part.cols, kind_of(format)}, {.linear = &linear, .part = i});
  }
  return linear.weight;
}

void WeightTable::set(const std::string& name, const TensorSource& source) {
  const auto found = entries_.find(name);
  require(found != entries_.end(), "[weights] got tensor ", name, ", which this model does not have.");
  Entry& entry = found->second;
  require(!entry.set, "[weights] got tensor ", name, " twice.");
  require(entry.linear != nullptr || source.dtype != TensorDType::kE4M3, "[weights] got ", name,
          " as E4M3 codes, want F32, F16 or BF16.");
  if (entry.vector != nullptr) set_vector(entry, source);
  if (entry.table != nullptr) set_table(entry, source);
  if (entry.linear != nullptr) set_linear(entry, source);
  entry.set = true;
}

void WeightTable::upload(DeviceArray& array, const void* host, std::size_t bytes) {
  array.buffer = backend_.device().allocate(bytes);
  stream_->copy_to_device(array.buffer->data(), host, bytes);
  stream_->synchronize();
}

void WeightTable::set_vector(Entry& entry, const TensorSource& source) {
  Vector& vector = *entry.vector;
  read_floats(source, 0, entry.cols, vector.staging.data() + vector.offsets[entry.part]);
  if (--vector.missing > 0) return;
  for (const float value : vector.staging) vector.array.magnitude = std::max(vector.array.magnitude, std::fabs(value));
  upload(vector.array, vector.staging.data(), vector.staging.size() * sizeof(float));
  vector.array.values = std::move(vector.staging);
}

void WeightTable::set_table(Entry& entry, const TensorSource& source) {
  Table& table = *entry.table;
  const std::int64_t rows = std::max<std::int64_t>(entry.rows, 1);
  std::vector<std::byte> staging(static_cast<std::size_t>(rows * entry.cols) * size_of(table.dtype));
  store_rows(source, rows, entry.cols, table.dtype, entry.cols, staging.data());
  upload(table.array, staging.data(), staging.size());
}

void WeightTable::set_linear(Entry& entry, const TensorSource& source) {
  Linear& linear = *entry.linear;
  const LinearWeightSource& shape = linear.source;
  const Part& part = linear.parts[entry.part];
  const std::int64_t row_blocks = scale_blocks(shape.outputs);
  const std::int64_t col_blocks = scale_blocks(shape.inputs);
  if (linear.values.empty()) {
    linear.values.resize(static_cast<std::size_t>(shape.experts * shape.outputs * shape.inputs) * size_of(shape.dtype));
    // Padding has scale 1: its codes are 0.
    if (shape.format == WeightFormat::kFp8Channel)
      linear.scales.assign(static_cast<std::size_t>(shape.experts * shape.outputs), 1.0f);
    if (shape.format == WeightFormat::kFp8Block) {
      linear.scales.assign(static_cast<std::size_t>(shape.experts * row_blocks * col_blocks), 1.0f);
    }
  }
  const std::int64_t first_row = part.expert * shape.outputs + part.row;
  std::byte* values = linear.values.data() + static_cast<std::size_t>(first_row * shape.inputs) * size_of(shape.dtype);
  if (shape.format == WeightFormat::kDense) {
    require(source.dtype != TensorDType::kE4M3, "[weights] got ", part.name,
            " as E4M3 codes, want F32, F16 or BF16. Open a quantised checkpoint with quantization='fp8'.");
    store_rows(source, part.rows, part.cols, shape.dtype, shape.inputs, values);
  } else {
    const bool block = shape.format == WeightFormat::kFp8Block;
    const std::int64_t part_col_blocks = scale_blocks(part.cols);
    std::vector<std::uint8_t> own_codes;
    std::vector<float> own_scales;
    const auto* codes = static_cast<const std::uint8_t*>(source.values);
    const float* scales = source.scales;
    if (source.dtype != TensorDType::kE4M3) {
      std::vector<float> dense(static_cast<std::size_t>(part.rows * part.cols));
      read_floats(source, 0, part.rows * part.cols, dense.data());
      own_codes.resize(dense.size());
      own_scales.resize(static_cast<std::size_t>(block ? scale_blocks(part.rows) * part_col_blocks : part.rows));
      (block ? quantize_block : quantize_channel)(DType::kF32, dense.data(), part.rows, part.cols, own_codes.data(),
                                                  own_scales.data());
      codes = own_codes.data();
      scales = own_scales.data();
    }
    require(scales != nullptr, "[weights] got ", part.name, " as E4M3 codes without scales.");
    for (std::int64_t r = 0; r < part.rows; ++r) {
      std::memcpy(values + r * shape.inputs, codes + r * part.cols, static_cast<std::size_t>(part.cols));
    }
    if (block) {
      float* to = linear.scales.data() + (part.expert * row_blocks + part.row / kScaleBlock) * col_blocks;
      for (std::int64_t r = 0; r < scale_blocks(part.rows); ++r) {
        std::memcpy(to + r * col_blocks, scales + r * part_col_blocks,
                    static_cast<std::size_t>(part_col_blocks) * sizeof(float));
      }
    } else {
      std::memcpy(linear.scales.data() + first_row, scales, static_cast<std::size_t>(part.rows) * sizeof(float));
    }
  }
  if (--linear.missing == 0) pack(linear);
}

void WeightTable::pack(Linear& linear) {
  linear.source.values = linear.values.data();
  linear.source.scales = linear.scales.empty() ? nullptr : linear.scales.data();
  linear.weight = backend_.pack_linear(linear.source);
  if (linear.gated_norm != nullptr && linear.source.format == WeightFormat::kFp8Channel &&
      backend_.takes_static_scales()) {
    ensure(!linear.gated_norm->values.empty(), linear.source.name, " is set before the norm of its input");
    linear.weight->static_scale = swiglu_static_scale(linear.source, linear.gated_norm->values);
  }
  std::vector<std::byte>().swap(linear.values);
  std::vector<float>().swap(linear.scales);
}

void WeightTable::finish() const {
  std::string missing;
  for (const auto& spec : specs_) {
    if (!entries_.at(spec.name).set) missing += (missing.empty() ? "" : ", ") + spec.name;
  }
  require(missing.empty(), "[weights] missing tensors: ", missing, ".");
}

std::size_t WeightTable::bytes() const {
  std::size_t total = 0;
  for (const auto& vector : vectors_) total += vector->array.buffer ? vector->array.buffer->bytes() : 0;
  for (const auto& table : tables_) total += table->array.buffer ? table->array.buffer->bytes() : 0;
  for (const auto& linear : linears_) total += linear->weight ? linear->weight->bytes : 0;
  return total;
}

}  // namespace onerec
