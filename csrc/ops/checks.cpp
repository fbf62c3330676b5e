#include "ops/checks.h"

#include <string>

#include "core/error.h"

namespace onerec {
namespace {

std::string names_of(std::initializer_list<DType> dtypes) {
  std::string names;
  for (const DType dtype : dtypes) {
    if (!names.empty()) names += " or ";
    names += name_of(dtype);
  }
  return names;
}

// Row r of `m` is [begin + r * pitch, begin + r * pitch + width) in bytes.
struct Span {
  std::uintptr_t begin;
  std::uintptr_t pitch;
  std::uintptr_t width;
  std::uintptr_t end;

  Span(const ConstMatrix& m, std::int64_t rows)
      : begin(reinterpret_cast<std::uintptr_t>(m.data)),
        pitch(static_cast<std::uintptr_t>(m.stride) * size_of(m.dtype)),
        width(static_cast<std::uintptr_t>(m.cols) * size_of(m.dtype)),
        end(begin + (static_cast<std::uintptr_t>(rows) - 1) * pitch + width) {}
};

bool overlap(const ConstMatrix& a, const ConstMatrix& b, std::int64_t rows) {
  if (rows == 0 || a.cols == 0 || b.cols == 0 || a.data == nullptr || b.data == nullptr) return false;
  const Span first(a, rows);
  const Span second(b, rows);
  if (first.end <= second.begin || second.end <= first.begin) return false;
  if (first.pitch != second.pitch) return true;
  // Columns of one matrix: compare where in the common pitch each begins.
  const bool a_is_first = first.begin <= second.begin;
  const Span& low = a_is_first ? first : second;
  const Span& high = a_is_first ? second : first;
  const std::uintptr_t gap = (high.begin - low.begin) % low.pitch;
  return gap < low.width || gap + high.width > low.pitch;
}

const char* name_of(ScaleKind kind) {
  switch (kind) {
    case ScaleKind::kNone:
      return "values without scales";
    case ScaleKind::kPerRow:
      return "codes with one scale per row";
    case ScaleKind::kPerBlock:
      return "codes with one scale per row and 128 columns";
  }
  return "an unknown scale kind";
}

}  // namespace

void check_pointer(const char* op, const char* name, const void* data) {
  require(data != nullptr, "[", op, "] got no ", name, ", want an array. Pass its address.");
}

void check_at_least(const char* op, const char* name, std::int64_t value, std::int64_t least) {
  require(value >= least, "[", op, "] got ", name, " = ", value, ", want at least ", least, ". Correct the shape.");
}

void check_extent(const char* op, const char* name, const Extent& extent) {
  require(extent.capacity >= 0, "[", op, "] got a capacity of ", extent.capacity, " for ", name,
          ", want at least 0. Correct the extent.");
}

void check_dtype(const char* op, const char* name, DType dtype, std::initializer_list<DType> wanted) {
  for (const DType candidate : wanted) {
    if (dtype == candidate) return;
  }
  require(false, "[", op, "] got ", name, " of ", onerec::name_of(dtype), ", want ", names_of(wanted),
          ". Convert it, or correct the view.");
}

void check_matrix(const char* op, const char* name, const ConstMatrix& matrix, std::int64_t rows, std::int64_t cols) {
  require(matrix.cols == cols, "[", op, "] got ", name, " of ", matrix.cols, " columns, want ", cols,
          ". Pass a matrix of that width.");
  require(matrix.rows >= rows, "[", op, "] got ", name, " of ", matrix.rows, " rows, want at least ", rows,
          ". Pass a matrix that holds the extent's capacity.");
  require(matrix.stride >= cols, "[", op, "] got ", name, " with stride ", matrix.stride, ", want at least its ", cols,
          " columns. Correct the stride, which is in elements.");
  require(matrix.data != nullptr || rows == 0 || cols == 0, "[", op, "] got no data for ", name, ", want ", rows, " x ",
          cols, " elements. Pass their address.");
}

void check_matrix(const char* op, const char* name, const ConstMatrix& matrix, std::initializer_list<DType> dtypes,
                  std::int64_t rows, std::int64_t cols) {
  check_dtype(op, name, matrix.dtype, dtypes);
  check_matrix(op, name, matrix, rows, cols);
}

void check_quantized(const char* op, const char* name, const Operand& operand, ScaleKind kind, std::int64_t rows,
                     std::int64_t cols) {
  require(operand.scale_kind == kind, "[", op, "] got ", name, " as ", name_of(operand.scale_kind), ", want ",
          name_of(kind), ". Quantise it that way.");
  check_matrix(op, name, operand.values, {DType::kE4M3}, rows, cols);
  if (rows == 0 || cols == 0) return;
  require(operand.scales != nullptr, "[", op, "] got no scales of ", name, ", want one per group. Pass their address.");
  require(kind == ScaleKind::kPerRow || operand.scale_stride >= rows, "[", op, "] got scales of ", name,
          " with stride ", operand.scale_stride, ", want at least ", rows, ", the capacity. Correct scale_stride.");
}

void check_quantized(const char* op, const char* name, const Operand& operand, std::int64_t rows, std::int64_t cols) {
  require(operand.quantized(), "[", op, "] got ", name, " as ", name_of(operand.scale_kind),
          ", want codes with scales. Set scale_kind to kPerRow or kPerBlock.");
  check_quantized(op, name, operand, operand.scale_kind, rows, cols);
}

void check_linear_input(const char* op, const Operand& x, const LinearWeight& weight, std::int64_t rows) {
  require(x.values.cols == weight.inputs, "[", op, "] got x of ", x.values.cols, " columns, want ", weight.inputs,
          " (the inputs of weight '", weight.name, "'). Pad x, or pass the weight that belongs to it.");
  if (weight.format != WeightFormat::kDense) {
    const ScaleKind kind = weight.format == WeightFormat::kFp8Channel ? ScaleKind::kPerRow : ScaleKind::kPerBlock;
    return check_quantized(op, "x", x, kind, rows, weight.inputs);
  }
  require(!x.quantized(), "[", op, "] got x as ", name_of(x.scale_kind), ", want ", name_of(ScaleKind::kNone),
          " for the dense weight '", weight.name, "'. Do not quantise it.");
  check_matrix(op, "x", x.values, {weight.dtype}, rows, weight.inputs);
}

void check_apart(const OpContext& context, const char* op, const char* a_name, const ConstMatrix& a, const char* b_name,
                 const ConstMatrix& b, std::int64_t rows) {
  if (context.measuring) return;
  require(!overlap(a, b, rows), "[", op, "] got ", a_name, " and ", b_name,
          " that overlap in memory, want them apart. Use two buffers.");
}

void check_same_or_apart(const OpContext& context, const char* op, const char* a_name, const ConstMatrix& a,
                         const char* b_name, const ConstMatrix& b, std::int64_t rows) {
  if (a.data == b.data && a.stride == b.stride && a.dtype == b.dtype) return;
  check_apart(context, op, a_name, a, b_name, b, rows);
}

bool workspace_ready(OpContext& context, const char* op, std::size_t bytes) {
  if (context.measuring) {
    context.need_workspace(bytes);
    return false;
  }
  require(context.workspace.bytes >= bytes && (bytes == 0 || context.workspace.data != nullptr), "[", op,
          "] got a workspace of ", context.workspace.bytes, " bytes, want ", bytes,
          ". Measure the plan with the parameters that it is run with.");
  return true;
}

void refuse_kernel(const char* op) {
  throw InternalError(concat("[", op, "] got a backend that has no such kernel, want its parts. Issue them."));
}

}  // namespace onerec
