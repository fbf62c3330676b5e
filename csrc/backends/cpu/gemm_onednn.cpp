// gemm.h over oneDNN's matmul.
//
// A oneDNN primitive has a fixed number of rows. A Gemm keeps one for each of some row counts and cuts what it is given
// into these, largest first: 1000 rows are 3 x 256 + 128 + 64 + 32 + 8. Rows that are fewer than the least of them are
// filled up with zeros. Primitives depend on the shape only, so all layers share them, through a cache.
#include "backends/cpu/gemm.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <ranges>
#include <span>
#include <tuple>

#include "backends/cpu/gemm_onednn_kernel.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cpu {
namespace {

using dnnl::memory;
using onednn::cpu_engine;
using onednn::Kernel;
using onednn::type_of;

// Ascending.
using RowCounts = std::span<const std::int64_t>;
constexpr std::array<std::int64_t, 13> kAnyRows = {1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256};
constexpr std::array<std::int64_t, 6> kSixRows = {6, 12, 24, 48, 96, 192};

// Columns of a panel: enough to keep a kernel busy, few enough to share a product of few rows among threads.
constexpr std::int64_t kPanelWidth = 256;
// Packed columns come in blocks of this many.
constexpr std::int64_t kColumnBlock = 64;
// Row count for which the library chooses the packed layout; its kernels for the other row counts accept that layout.
constexpr std::int64_t kTypicalRows = 64;

// The layout that the library wants a panel [n, k] in.
memory::desc packed_layout(DType dtype, std::int64_t n, std::int64_t k) {
  const memory::desc any(memory::dims{k, n}, type_of(dtype), memory::format_tag::any);
  return onednn::describe(dtype, kTypicalRows, n, k, any).weights_desc();
}

class OneDnnMatrix final : public PackedMatrix {
 public:
  OneDnnMatrix(DType dtype_, std::int64_t count_, std::int64_t n_, std::int64_t k_, const void* values) {
    dtype = dtype_;
    count = count_;
    n = n_;
    k = k_;
    // Panels of about equal width, made of whole blocks.
    const std::int64_t wanted = std::max<std::int64_t>(1, (n + kPanelWidth / 2) / kPanelWidth);
    const auto even_width = static_cast<std::size_t>((n + wanted - 1) / wanted);
    panel_width = std::min(static_cast<std::int64_t>(align_up(even_width, kColumnBlock)), n);
    panels = (n + panel_width - 1) / panel_width;

    std::vector<std::size_t> panel_offsets;
    std::size_t matrix_bytes = 0;
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      layouts_.push_back(packed_layout(dtype, width_of(panel), k));
      panel_offsets.push_back(matrix_bytes);
      matrix_bytes += align_up(layouts_.back().get_size());
    }
    bytes = matrix_bytes * static_cast<std::size_t>(count);
    storage_ = CpuDevice(1).allocate(bytes);

    for (std::int64_t matrix = 0; matrix < count; ++matrix) {
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        auto* packed = static_cast<std::byte*>(storage_->data()) + static_cast<std::size_t>(matrix) * matrix_bytes +
                       panel_offsets[static_cast<std::size_t>(panel)];
        const auto first_row = static_cast<std::size_t>((matrix * n + panel_begin(panel)) * k);
        pack(panel, static_cast<const std::byte*>(values) + first_row * size_of(dtype), packed);
      }
    }
  }

  const memory& panel_memory(std::int64_t matrix, std::int64_t panel) const {
    return memories_[static_cast<std::size_t>(matrix * panels + panel)];
  }
  const memory::desc& layout(std::int64_t panel) const { return layouts_[static_cast<std::size_t>(panel)]; }

 private:
  void pack(std::int64_t panel, const void* rows, void* packed) {
    const ThreadScope one_thread(1);  // a panel is too small to share
    dnnl::stream stream(cpu_engine());
    memory from({memory::dims{k, width_of(panel)}, type_of(dtype), memory::format_tag::ba}, cpu_engine(),
                const_cast<void*>(rows));
    memory to(layout(panel), cpu_engine(), packed);
    dnnl::reorder(from, to).execute(stream, from, to);
    stream.wait();
    memories_.push_back(std::move(to));
  }

  std::vector<memory::desc> layouts_;  // [panels]
  std::vector<memory> memories_;       // [count, panels], views of storage_
  std::unique_ptr<Buffer> storage_;
};

std::shared_ptr<Kernel> cached_kernel(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k,
                                      const memory::desc& packed) {
  using Key = std::tuple<DType, std::int64_t, std::int64_t, std::int64_t>;
  static std::mutex mutex;
  static auto* const kernels = new std::map<Key, std::shared_ptr<Kernel>>;  // never destroyed, like the engine
  const std::lock_guard lock(mutex);
  std::shared_ptr<Kernel>& kernel = (*kernels)[{dtype, rows, n, k}];
  if (kernel == nullptr) kernel = std::make_shared<Kernel>(dtype, rows, n, k, packed);
  return kernel;
}

class OneDnnGemm final : public Gemm {
 public:
  OneDnnGemm(const OneDnnMatrix& weight, std::int64_t max_rows, int threads)
      : weight_(weight), row_bytes_(static_cast<std::size_t>(weight.k) * size_of(weight.dtype)) {
    const std::int64_t last = weight.panels - 1;
    wide_ = make_kernels(0, max_rows, threads);
    if (weight.width_of(last) != weight.panel_width) narrow_ = make_kernels(last, max_rows, threads);
    const std::int64_t smallest = std::max(wide_.front().rows, narrow_.empty() ? 1 : narrow_.front().rows);
    if (smallest > 1) {
      filled_bytes_ = align_up(static_cast<std::size_t>(smallest) * row_bytes_);
      filled_sums_bytes_ = align_up(static_cast<std::size_t>(smallest * weight.panel_width) * sizeof(float));
      scratch_bytes_ += filled_bytes_ + filled_sums_bytes_;
    }
  }

  std::size_t scratch_bytes() const override { return scratch_bytes_; }

  bool run(std::int64_t matrix, std::int64_t panel, std::int64_t rows, const void* a, float* sums,
           void* scratch) const override {
    const std::int64_t width = weight_.width_of(panel);
    const Kernels& kernels = width == weight_.panel_width ? wide_ : narrow_;
    const memory& b = weight_.panel_memory(matrix, panel);
    const auto* a_row = static_cast<const std::byte*>(a);
    for (const auto& [count, kernel] : std::views::reverse(kernels)) {
      for (; rows >= count; rows -= count) {
        if (!kernel->run(b, a_row, sums, scratch)) return false;
        a_row += static_cast<std::size_t>(count) * row_bytes_;
        sums += count * width;
      }
    }
    if (rows == 0) return true;

    const auto& [smallest, kernel] = kernels.front();
    auto* const filled = static_cast<std::byte*>(scratch);
    auto* const filled_sums = reinterpret_cast<float*>(filled + filled_bytes_);
    const std::size_t used = static_cast<std::size_t>(rows) * row_bytes_;
    std::memcpy(filled, a_row, used);
    std::memset(filled + used, 0, static_cast<std::size_t>(smallest) * row_bytes_ - used);
    // Behind both, at the next aligned address.
    std::byte* const kernel_scratch = filled + filled_bytes_ + filled_sums_bytes_;
    if (!kernel->run(b, filled, filled_sums, kernel_scratch)) return false;
    std::memcpy(sums, filled_sums, static_cast<std::size_t>(rows * width) * sizeof(float));
    return true;
  }

  std::string kernel_name(std::int64_t rows) const override {
    for (const auto& [count, kernel] : std::views::reverse(wide_)) {
      if (count <= rows) return kernel->name();
    }
    return wide_.front().kernel->name();
  }

 private:
  struct RowsKernel {
    std::int64_t rows;
    std::shared_ptr<Kernel> kernel;
  };
  using Kernels = std::vector<RowsKernel>;  // ascending; none above the most rows, save the first

  // All of one implementation, that of the typical row count: another rounds a row's sums otherwise. On a processor
  // with matrix tiles oneDNN 3.2 as a rule does without them for BF16 where rows x k is 248 or less.
  Kernels make_kernels(std::int64_t panel, std::int64_t max_rows, int threads) {
    const auto kernel_for = [&](std::int64_t rows) {
      return cached_kernel(weight_.dtype, rows, weight_.width_of(panel), weight_.k, weight_.layout(panel));
    };
    const std::string name = kernel_for(kTypicalRows)->name();
    Kernels kernels;
    for (const std::int64_t rows : name.starts_with("brg") ? RowCounts(kAnyRows) : RowCounts(kSixRows)) {
      if (rows > max_rows && !kernels.empty()) break;
      std::shared_ptr<Kernel> kernel = kernel_for(rows);
      if (kernel->name() != name) continue;
      kernel->reserve(threads);
      scratch_bytes_ = std::max(scratch_bytes_, align_up(kernel->scratch_bytes()));
      kernels.push_back({rows, std::move(kernel)});
    }
    ensure(!kernels.empty(), "the matrix library has '", name, "' for ", kTypicalRows, " rows only");
    return kernels;
  }

  const OneDnnMatrix& weight_;
  std::size_t row_bytes_;
  Kernels wide_;    // of the panels of full width
  Kernels narrow_;  // of the last panel, if it is narrower
  std::size_t scratch_bytes_ = 0;
  std::size_t filled_bytes_ = 0;       // of rows filled up with zeros
  std::size_t filled_sums_bytes_ = 0;  // of their sums
};

// BF16 pays where the processor has matrix tiles, or multiplies BF16 pairs at least as fast as it multiplies FP32.
// AMD's do; Intel's AVX-512 units take four times as long for a pair's instruction as for FP32's (measured: 80 against
// 150 GFLOP/s on one core). The choice is made by the kind of processor and not by a measurement, so that it is the
// same at every start. ONEREC_CPU_BF16=bfloat16 or float32 overrides it, for tests.
bool multiplies_bf16_well() {
  const char* const choice = std::getenv("ONEREC_CPU_BF16");
  if (choice != nullptr && std::strcmp(choice, "bfloat16") == 0) return true;
  if (choice != nullptr && std::strcmp(choice, "float32") == 0) return false;
  const auto has = [](dnnl::cpu_isa isa) {
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & static_cast<unsigned>(isa)) ==
           static_cast<unsigned>(isa);
  };
  if (has(dnnl::cpu_isa::avx512_core_amx)) return true;
  __builtin_cpu_init();
  return has(dnnl::cpu_isa::avx512_core_bf16) && __builtin_cpu_is("amd");
}

}  // namespace

DType gemm_type(DType values) {
  static const DType bf16 = multiplies_bf16_well() ? DType::kBF16 : DType::kF32;
  return values == DType::kF32 ? DType::kF32 : bf16;
}

std::unique_ptr<PackedMatrix> pack_matrix(DType dtype, std::int64_t count, std::int64_t n, std::int64_t k,
                                          const void* values) {
  return std::make_unique<OneDnnMatrix>(dtype, count, n, k, values);
}

std::shared_ptr<const Gemm> make_gemm(const PackedMatrix& weight, std::int64_t max_rows, int threads) {
  return std::make_shared<OneDnnGemm>(static_cast<const OneDnnMatrix&>(weight), max_rows, threads);
}

void set_openblas_path(const char*) {}

}  // namespace onerec::cpu
