// gemm.h over OpenBLAS, for machines without oneDNN. FP32 only: BF16 values and E4M3 codes convert to it exactly.
//
// The library is opened on first use, because it starts threads the moment it is loaded. It is told to use one: ours
// call it side by side. Its kernels take rows in groups and treat what is left over differently. So it is only ever
// given multiples of kRowGroup rows, the last group filled up with zeros. With its kernels for AVX-512 and for AVX a
// row's bits then depend on nothing else; its kernel for Haswell sums the first and the second six of twelve rows in
// different orders, so that there the last bits of a row depend on its place in the batch. Of the kernels for other
// processors we do not know.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "backends/cpu/cpu_device.h"
#include "backends/cpu/gemm.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cpu {
namespace {

constexpr std::int64_t kRowGroup = 24;
constexpr std::int64_t kPanelWidth = 256;

// Values of CBLAS's enumerations.
constexpr int kRowMajor = 101;
constexpr int kNoTranspose = 111;
constexpr int kTranspose = 112;

// cblas_sgemm of a library with 32-bit indices.
using Sgemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a,
                       int lda, const float* b, int ldb, float beta, float* c, int ldc);
using SetThreads = void (*)(int);

std::mutex& path_mutex() {
  static std::mutex mutex;
  return mutex;
}

std::string& chosen_path() {
  static std::string path;
  return path;
}

std::vector<std::string> candidates() {
  std::vector<std::string> paths;
  const std::lock_guard lock(path_mutex());
  if (!chosen_path().empty()) paths.push_back(chosen_path());
  if (const char* path = std::getenv("ONEREC_OPENBLAS")) paths.emplace_back(path);
  for (const char* name :
       {"libscipy_openblas.so", "libopenblas.so.0", "libopenblas.so", "libscipy_openblas.dylib", "libopenblas.dylib"}) {
    paths.emplace_back(name);
  }
  return paths;
}

// A symbol under its own name or with the prefix of scipy-openblas32.
template <class F>
F symbol(void* library, const std::string& name) {
  for (const std::string& candidate : {"scipy_" + name, name}) {
    if (void* found = dlsym(library, candidate.c_str())) return reinterpret_cast<F>(found);
  }
  return nullptr;
}

Sgemm load() {
  for (const std::string& path : candidates()) {
    void* const library =
        dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its threads would lose their code
    if (library == nullptr) continue;
    const auto sgemm = symbol<Sgemm>(library, "cblas_sgemm");
    const auto set_threads = symbol<SetThreads>(library, "openblas_set_num_threads");
    if (sgemm == nullptr || set_threads == nullptr) continue;
    set_threads(1);
    return sgemm;
  }
  throw StateError(
      "[cpu] got no OpenBLAS library, want one with 32-bit indices. Install scipy-openblas32, or name the file in "
      "ONEREC_OPENBLAS.");
}

Sgemm sgemm() {
  static const Sgemm function = load();
  return function;
}

// Panels are rows of the weight as it came: no packing.
class OpenBlasMatrix final : public PackedMatrix {
 public:
  OpenBlasMatrix(std::int64_t count_, std::int64_t n_, std::int64_t k_, const void* values) {
    dtype = DType::kF32;
    count = count_;
    n = n_;
    k = k_;
    panel_width = std::min(n, kPanelWidth);
    panels = (n + panel_width - 1) / panel_width;
    bytes = static_cast<std::size_t>(count * n * k) * sizeof(float);
    storage_ = CpuDevice(1).allocate(bytes);
    std::memcpy(storage_->data(), values, bytes);
    sgemm();  // a missing library is an error of the load, not of the first request
  }

  const float* panel_rows(std::int64_t matrix, std::int64_t panel) const {
    return static_cast<const float*>(storage_->data()) + (matrix * n + panel_begin(panel)) * k;
  }

 private:
  std::unique_ptr<Buffer> storage_;
};

class OpenBlasGemm final : public Gemm {
 public:
  explicit OpenBlasGemm(const OpenBlasMatrix& weight) : weight_(weight) {}

  std::size_t scratch_bytes() const override {
    return filled_bytes() + static_cast<std::size_t>(kRowGroup * weight_.panel_width) * sizeof(float);
  }

  bool run(std::int64_t matrix, std::int64_t panel, std::int64_t rows, const void* a, float* sums,
           void* scratch) const override {
    const std::int64_t width = weight_.width_of(panel);
    const float* const b = weight_.panel_rows(matrix, panel);
    const auto* a_row = static_cast<const float*>(a);
    const std::int64_t whole = rows / kRowGroup * kRowGroup;
    if (whole > 0) multiply(whole, a_row, b, width, sums);
    rows -= whole;
    if (rows == 0) return true;

    auto* const filled = static_cast<std::byte*>(scratch);
    auto* const filled_sums = reinterpret_cast<float*>(filled + filled_bytes());
    const auto used = static_cast<std::size_t>(rows * weight_.k) * sizeof(float);
    std::memcpy(filled, a_row + whole * weight_.k, used);
    std::memset(filled + used, 0, filled_bytes() - used);
    multiply(kRowGroup, reinterpret_cast<const float*>(filled), b, width, filled_sums);
    std::memcpy(sums + whole * width, filled_sums, static_cast<std::size_t>(rows * width) * sizeof(float));
    return true;
  }

  std::string kernel_name(std::int64_t) const override { return "sgemm"; }

 private:
  std::size_t filled_bytes() const { return align_up(static_cast<std::size_t>(kRowGroup * weight_.k) * sizeof(float)); }

  void multiply(std::int64_t rows, const float* a, const float* b, std::int64_t width, float* sums) const {
    const int k = static_cast<int>(weight_.k);
    const int n = static_cast<int>(width);
    sgemm()(kRowMajor, kNoTranspose, kTranspose, static_cast<int>(rows), n, k, 1.0f, a, k, b, k, 0.0f, sums, n);
  }

  const OpenBlasMatrix& weight_;
};

}  // namespace

DType gemm_type(DType) { return DType::kF32; }

std::unique_ptr<PackedMatrix> pack_matrix(DType, std::int64_t count, std::int64_t n, std::int64_t k,
                                          const void* values) {
  return std::make_unique<OpenBlasMatrix>(count, n, k, values);
}

std::shared_ptr<const Gemm> make_gemm(const PackedMatrix& weight, std::int64_t, int) {
  return std::make_shared<OpenBlasGemm>(static_cast<const OpenBlasMatrix&>(weight));
}

void set_openblas_path(const char* path) {
  const std::lock_guard lock(path_mutex());
  chosen_path() = path;
}

}  // namespace onerec::cpu
