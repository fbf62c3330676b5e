// Validation that ops share. Every function throws ArgumentError "[op] got X, want Y. Do Z." and reads no tensor data.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "ops/context.h"
#include "ops/linear.h"
#include "ops/operand.h"

namespace onerec {

// `data` is not null. For arrays that an op cannot do without.
void check_pointer(const char* op, const char* name, const void* data);

// `value` is at least `least`.
void check_at_least(const char* op, const char* name, std::int64_t value, std::int64_t least);

// 0 <= capacity.
void check_extent(const char* op, const char* name, const Extent& extent);

// `dtype` is one of `wanted`.
void check_dtype(const char* op, const char* name, DType dtype, std::initializer_list<DType> wanted);

// At least `rows` rows of exactly `cols` columns, stride >= cols, and data unless there is nothing to hold.
void check_matrix(const char* op, const char* name, const ConstMatrix& matrix, std::int64_t rows, std::int64_t cols);

// check_matrix and check_dtype in one.
void check_matrix(const char* op, const char* name, const ConstMatrix& matrix, std::initializer_list<DType> dtypes,
                  std::int64_t rows, std::int64_t cols);

// A quantised operand of `kind` (kPerRow or kPerBlock): E4M3 codes of that shape with a scale for each group.
void check_quantized(const char* op, const char* name, const Operand& operand, ScaleKind kind, std::int64_t rows,
                     std::int64_t cols);

// The scale kind is kPerRow or kPerBlock, and check_quantized.
void check_quantized(const char* op, const char* name, const Operand& operand, std::int64_t rows, std::int64_t cols);

// `x` is what a linear of this weight multiplies: its inputs wide, and of its dtype, or coded the way that its format
// asks for.
void check_linear_input(const char* op, const Operand& x, const LinearWeight& weight, std::int64_t rows);

// The bytes of the first `rows` rows of `a` and `b` do not overlap (columns of one matrix side by side do not). Asks
// nothing while measuring: the addresses of a measuring arena repeat.
void check_apart(const OpContext& context, const char* op, const char* a_name, const ConstMatrix& a, const char* b_name,
                 const ConstMatrix& b, std::int64_t rows);

// `a` and `b` are either the same elements or apart.
void check_same_or_apart(const OpContext& context, const char* op, const char* a_name, const ConstMatrix& a,
                         const char* b_name, const ConstMatrix& b, std::int64_t rows);

// The last step of validation. Measuring: notes the need and returns false. Else makes sure that the workspace is large
// enough and returns true: run the op.
bool workspace_ready(OpContext& context, const char* op, std::size_t bytes);

// An op that is made of others, whose params every part checks: `kernel()` does it in their place if `at_once` says so.
template <class Params, class Kernel>
void issue_as_one(OpContext& context, const Params& params, bool at_once, void (*parts)(OpContext&, const Params&),
                  const Kernel& kernel) {
  if (!at_once) return parts(context, params);
  OpContext checking = context.checking();
  parts(checking, params);
  kernel();
}

// For backends without the kernel of an op that is made of others.
[[noreturn]] void refuse_kernel(const char* op);

}  // namespace onerec
