// Element types of the tensors that ops read and write.
#pragma once

#include <cstddef>
#include <cstdint>

namespace onerec {

enum class DType : std::uint8_t { kF32, kBF16, kE4M3, kI32, kI64, kU8, kU32, kU64 };

constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kE4M3:
    case DType::kU8:
      return 1;
    case DType::kI64:
    case DType::kU64:
      return 8;
  }
  return 0;
}

constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kBF16:
      return "bfloat16";
    case DType::kE4M3:
      return "float8_e4m3";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kU8:
      return "uint8";
    case DType::kU32:
      return "uint32";
    case DType::kU64:
      return "uint64";
  }
  return "unknown";
}

}  // namespace onerec
