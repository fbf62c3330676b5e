// Buffers of a pass: typed views over arena memory.
#pragma once

#include "core/arena.h"
#include "model/model.h"
#include "ops/operand.h"

namespace onerec {

// Allocates from an arena and books what it took under a purpose.
class PassMemory {
 public:
  PassMemory(Arena& arena, MemoryLedger& ledger) : arena_(arena), ledger_(ledger) {}

  template <class T>
  T* array(const char* purpose, std::int64_t count) {
    return static_cast<T*>(allocate(purpose, static_cast<std::size_t>(count) * sizeof(T)));
  }

  Matrix matrix(const char* purpose, DType dtype, std::int64_t rows, std::int64_t cols) {
    return {allocate(purpose, static_cast<std::size_t>(rows * cols) * size_of(dtype)), dtype, rows, cols, cols};
  }

  // The left-hand side of a linear: values of `dense`, or codes with scales.
  Operand operand(const char* purpose, ScaleKind kind, DType dense, std::int64_t rows, std::int64_t cols) {
    Operand operand;
    operand.scale_kind = kind;
    operand.values = matrix(purpose, kind == ScaleKind::kNone ? dense : DType::kE4M3, rows, cols);
    if (kind != ScaleKind::kNone) {
      operand.scale_stride = rows;
      operand.scales = array<float>(purpose, rows * (kind == ScaleKind::kPerRow ? 1 : scale_blocks(cols)));
    }
    return operand;
  }

 private:
  void* allocate(const char* purpose, std::size_t bytes) {
    const std::size_t before = arena_.used();
    void* data = arena_.allocate(bytes);
    ledger_[purpose] += arena_.used() - before;
    return data;
  }

  Arena& arena_;
  MemoryLedger& ledger_;
};

// Where an op that either stores or quantises writes `operand`: one of the two is empty.
inline Matrix values_of(const Operand& operand) { return operand.quantized() ? Matrix{} : operand.values; }
inline Operand codes_of(const Operand& operand) { return operand.quantized() ? operand : Operand{}; }

// The scales that go with a weight's format.
constexpr ScaleKind scale_kind_for(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8Channel:
      return ScaleKind::kPerRow;
    case WeightFormat::kFp8Block:
      return ScaleKind::kPerBlock;
    case WeightFormat::kDense:
      break;
  }
  return ScaleKind::kNone;
}

}  // namespace onerec
