// Matrix products through a library: one interface, one implementation per build (gemm_onednn.cpp or
// gemm_openblas.cpp).
//
// Every product is computed by the calling thread alone; matmul.h splits the work among threads and does what follows
// the sums. So the thread count cannot change a result, no second pool of threads competes with ours, and a library
// need not know our epilogues.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "core/dtype.h"

namespace onerec::cpu {

// The type in which the library multiplies values of `values` (kF32, kBF16 or kE4M3), all of which convert to it
// exactly. BF16 values and E4M3 codes are multiplied as BF16 where that is faster than FP32, else as FP32. Sums are
// FP32 always.
DType gemm_type(DType values);

// A stack of weights [count, n, k], each cut into panels of columns of the product and packed for the library.
// Immutable.
class PackedMatrix {
 public:
  virtual ~PackedMatrix() = default;

  DType dtype = DType::kF32;  // kF32 or kBF16, a gemm_type
  std::int64_t count = 0;
  std::int64_t n = 0;
  std::int64_t k = 0;
  std::int64_t panels = 0;
  std::int64_t panel_width = 0;  // of all panels but the last, which may be narrower
  std::size_t bytes = 0;

  std::int64_t panel_begin(std::int64_t panel) const { return panel * panel_width; }
  std::int64_t width_of(std::int64_t panel) const { return panel + 1 < panels ? panel_width : n - panel * panel_width; }
};

// Values in host memory, contiguous, of `dtype` (a gemm_type). They are not needed afterwards.
std::unique_ptr<PackedMatrix> pack_matrix(DType dtype, std::int64_t count, std::int64_t n, std::int64_t k,
                                          const void* values);

// sums = a b^T for one panel of one weight. Made when an op is issued, for any number of rows up to a limit; immutable
// and shared. A row's bits do not depend on the number of rows (tested; gemm_openblas.cpp says how far that holds
// there).
class Gemm {
 public:
  virtual ~Gemm() = default;
  // Memory that each concurrent call needs, aligned to 64.
  virtual std::size_t scratch_bytes() const = 0;
  // a: [rows, k] of the weight's dtype; sums: [rows, width of the panel]; both contiguous. False if the library failed.
  // Throws nothing.
  virtual bool run(std::int64_t matrix, std::int64_t panel, std::int64_t rows, const void* a, float* sums,
                   void* scratch) const = 0;
  // The library's kernel for that many rows, as it calls it.
  virtual std::string kernel_name(std::int64_t rows) const = 0;
};

// Products of up to `max_rows` rows by up to `threads` threads at a time. `weight` must outlive it. Thread-safe.
std::shared_ptr<const Gemm> make_gemm(const PackedMatrix& weight, std::int64_t max_rows, int threads);

// Where the OpenBLAS build finds its library: the file that Python's scipy-openblas32 package brings. Takes effect
// before the first product; without it, the environment's ONEREC_OPENBLAS and then usual names are tried. The oneDNN
// build ignores it.
void set_openblas_path(const char* path);

}  // namespace onerec::cpu
