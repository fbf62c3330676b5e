// gemm.h over oneDNN's matmul.
//
// A oneDNN primitive has a fixed number of rows. A Gemm keeps one per row count of kRowCounts and cuts what it is given
// into these, largest first: 1000 rows are 3 x 256 + 128 + 64 + 32 + 8. Primitives depend on the shape only, so all
// layers share them, through a cache.
#include <omp.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <tuple>
#include <vector>

#include "backends/cpu/cpu_device.h"
#include "backends/cpu/gemm.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cpu {
namespace {

using dnnl::memory;

constexpr std::array<std::int64_t, 13> kRowCounts = {256, 128, 64, 32, 16, 8, 7, 6, 5, 4, 3, 2, 1};

// Columns of a panel: enough to keep a kernel busy, few enough to share a product of few rows among threads.
constexpr std::int64_t kPanelWidth = 256;
// Packed columns come in blocks of this many.
constexpr std::int64_t kColumnBlock = 64;
// Row count for which the library chooses the packed layout; its kernels for the other row counts accept that layout.
constexpr std::int64_t kTypicalRows = 64;

const dnnl::engine& cpu_engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // never destroyed: others may outlive main
  return *engine;
}

memory::data_type type_of(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

dnnl::primitive_attr attributes(const GemmSpec& spec) {
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attr.set_fpmath_mode(dnnl::fpmath_mode::strict);  // whatever the environment says
  dnnl::post_ops post_ops;
  if (spec.leaky_relu) post_ops.append_eltwise(dnnl::algorithm::eltwise_relu, spec.negative_slope, 0.0f);
  if (spec.accumulate) post_ops.append_sum(1.0f);
  attr.set_post_ops(post_ops);
  return attr;
}

struct Descriptors {
  memory::desc a, b, bias, d;
};

Descriptors describe(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k, const GemmSpec& spec) {
  using dims = memory::dims;
  return {.a = {dims{rows, k}, type_of(dtype), dims{spec.lda, 1}},
          .b = {dims{k, n}, type_of(dtype), memory::format_tag::any},
          .bias = spec.bias ? memory::desc(dims{1, n}, memory::data_type::f32, dims{n, 1}) : memory::desc(),
          .d = {dims{rows, n}, type_of(spec.out), dims{spec.ldd, 1}}};
}

dnnl::matmul::primitive_desc primitive_desc(const Descriptors& descriptors, const GemmSpec& spec) {
  // The library plans for the number of threads that it sees now.
  const ThreadScope one_thread(1);
  const auto& [a, b, bias, d] = descriptors;
  return spec.bias ? dnnl::matmul::primitive_desc(cpu_engine(), a, b, bias, d, attributes(spec))
                   : dnnl::matmul::primitive_desc(cpu_engine(), a, b, d, attributes(spec));
}

// The packed layout of a [n, k] weight panel.
memory::desc packed_layout(DType dtype, std::int64_t n, std::int64_t k) {
  const GemmSpec plain{.lda = k, .ldd = n};
  GemmSpec spec = plain;
  spec.out = dtype;
  return primitive_desc(describe(dtype, kTypicalRows, n, k, spec), spec).weights_desc();
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
    panel_width =
        static_cast<std::int64_t>(align_up(static_cast<std::size_t>((n + wanted - 1) / wanted), kColumnBlock));
    panels = (n + panel_width - 1) / panel_width;
    panel_width = std::min(panel_width, n);

    std::size_t matrix_bytes = 0;
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      layouts_.push_back(packed_layout(dtype, width_of(panel), k));
      offsets_.push_back(matrix_bytes);
      matrix_bytes += align_up(layouts_.back().get_size());
    }
    bytes = matrix_bytes * static_cast<std::size_t>(count);
    storage_ = CpuDevice(1).allocate(bytes);

    const ThreadScope all_threads(omp_get_num_procs());
    dnnl::stream stream(cpu_engine());
    for (std::int64_t matrix = 0; matrix < count; ++matrix) {
      for (std::int64_t panel = 0; panel < panels; ++panel) {
        const std::size_t offset =
            static_cast<std::size_t>(matrix) * matrix_bytes + offsets_[static_cast<std::size_t>(panel)];
        auto* packed = static_cast<std::byte*>(storage_->data()) + offset;
        const auto* rows = static_cast<const std::byte*>(values) +
                           static_cast<std::size_t>((matrix * n + panel_begin(panel)) * k) * size_of(dtype);
        memory to(layouts_[static_cast<std::size_t>(panel)], cpu_engine(), packed);
        memory from({memory::dims{k, width_of(panel)}, type_of(dtype), memory::dims{1, k}}, cpu_engine(),
                    const_cast<std::byte*>(rows));
        dnnl::reorder(from, to).execute(stream, from, to);
        memories_.push_back(std::move(to));
      }
    }
    stream.wait();
  }

  const memory& panel_memory(std::int64_t matrix, std::int64_t panel) const {
    return memories_[static_cast<std::size_t>(matrix * panels + panel)];
  }
  const memory::desc& layout(std::int64_t panel) const { return layouts_[static_cast<std::size_t>(panel)]; }

 private:
  std::vector<memory::desc> layouts_;  // [panels]
  std::vector<std::size_t> offsets_;   // [panels], in a matrix
  std::vector<memory> memories_;       // [count, panels]
  std::unique_ptr<Buffer> storage_;
};

// One primitive, and sets of arguments for it: a set is used by one call at a time and kept for the next.
class Kernel {
 public:
  Kernel(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k, const memory::desc& packed,
         const GemmSpec& spec) {
    descriptors_ = describe(dtype, rows, n, k, spec);
    descriptors_.b = packed;
    const auto pd = primitive_desc(descriptors_, spec);
    scratch_ = pd.scratchpad_desc();
    name_ = pd.impl_info_str();
    primitive_ = dnnl::matmul(pd);
  }

  std::size_t scratch_bytes() const { return scratch_.get_size(); }
  const std::string& name() const { return name_; }

  void reserve(int calls) {
    const std::lock_guard lock(mutex_);
    free_.reserve(static_cast<std::size_t>(std::max(calls, made_)));
    while (made_ < calls) free_.push_back(make_arguments());
  }

  bool run(const memory& b, const void* a, const float* bias, void* d, void* scratch) {
    std::unique_ptr<Arguments> arguments = take();
    auto& memories = arguments->memories;
    auto* const bias_handle = const_cast<float*>(bias);
    const bool ready = dnnl_memory_set_data_handle(memories[0].get(), const_cast<void*>(a)) == dnnl_success &&
                       dnnl_memory_set_data_handle(memories[1].get(), d) == dnnl_success &&
                       dnnl_memory_set_data_handle(memories[2].get(), scratch) == dnnl_success &&
                       (bias == nullptr || dnnl_memory_set_data_handle(memories[3].get(), bias_handle) == dnnl_success);
    const dnnl_exec_arg_t list[] = {{DNNL_ARG_SRC, memories[0].get()},
                                    {DNNL_ARG_WEIGHTS, b.get()},
                                    {DNNL_ARG_DST, memories[1].get()},
                                    {DNNL_ARG_SCRATCHPAD, memories[2].get()},
                                    {DNNL_ARG_BIAS, bias == nullptr ? nullptr : memories[3].get()}};
    const int count = bias == nullptr ? 4 : 5;
    const bool done =
        ready && dnnl_primitive_execute(primitive_.get(), arguments->stream.get(), count, list) == dnnl_success;
    give(std::move(arguments));
    return done;
  }

 private:
  struct Arguments {
    dnnl::stream stream;
    std::array<memory, 4> memories;  // a, d, scratch, bias
  };

  std::unique_ptr<Arguments> make_arguments() {
    ++made_;
    auto arguments = std::make_unique<Arguments>();
    arguments->stream = dnnl::stream(cpu_engine());
    arguments->memories[0] = memory(descriptors_.a, cpu_engine(), DNNL_MEMORY_NONE);
    arguments->memories[1] = memory(descriptors_.d, cpu_engine(), DNNL_MEMORY_NONE);
    arguments->memories[2] = memory(scratch_, cpu_engine(), DNNL_MEMORY_NONE);
    if (descriptors_.bias.get_size() > 0) {
      arguments->memories[3] = memory(descriptors_.bias, cpu_engine(), DNNL_MEMORY_NONE);
    }
    return arguments;
  }

  std::unique_ptr<Arguments> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {  // more callers at a time than were announced
      free_.reserve(static_cast<std::size_t>(made_) + 1);
      return make_arguments();
    }
    std::unique_ptr<Arguments> arguments = std::move(free_.back());
    free_.pop_back();
    return arguments;
  }

  void give(std::unique_ptr<Arguments> arguments) {
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(arguments));  // within what was reserved
  }

  Descriptors descriptors_;
  memory::desc scratch_;
  std::string name_;
  dnnl::matmul primitive_;
  std::mutex mutex_;
  int made_ = 0;
  std::vector<std::unique_ptr<Arguments>> free_;
};

std::shared_ptr<Kernel> cached_kernel(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k,
                                      const memory::desc& packed, const GemmSpec& spec) {
  using Key = std::tuple<DType, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, DType, bool, bool,
                         float, bool>;
  static std::mutex mutex;
  static auto* const kernels = new std::map<Key, std::shared_ptr<Kernel>>;  // never destroyed, like the engine
  const Key key{
      dtype,          rows, n, k, spec.lda, spec.ldd, spec.out, spec.bias, spec.leaky_relu, spec.negative_slope,
      spec.accumulate};
  const std::lock_guard lock(mutex);
  std::shared_ptr<Kernel>& kernel = (*kernels)[key];
  if (kernel == nullptr) kernel = std::make_shared<Kernel>(dtype, rows, n, k, packed, spec);
  return kernel;
}

class OneDnnGemm final : public Gemm {
 public:
  OneDnnGemm(const OneDnnMatrix& weight, const GemmSpec& spec, std::int64_t max_rows, int threads) : weight_(weight) {
    const std::int64_t last = weight.panels - 1;
    make_kernels(wide_, 0, spec, max_rows, threads);
    if (weight.width_of(last) != weight.panel_width) make_kernels(narrow_, last, spec, max_rows, threads);
  }

  std::size_t scratch_bytes() const override { return scratch_bytes_; }

  bool run(std::int64_t matrix, std::int64_t panel, std::int64_t rows, const void* a, const float* bias, void* d,
           void* scratch) const override {
    const Kernels& kernels = weight_.width_of(panel) == weight_.panel_width ? wide_ : narrow_;
    const memory& b = weight_.panel_memory(matrix, panel);
    const auto* a_row = static_cast<const std::byte*>(a);
    auto* d_row = static_cast<std::byte*>(d);
    for (std::size_t i = 0; i < kRowCounts.size() && rows > 0;) {
      if (kRowCounts[i] > rows) {
        ++i;
        continue;
      }
      if (kernels[i] == nullptr || !kernels[i]->run(b, a_row, bias, d_row, scratch)) return false;
      rows -= kRowCounts[i];
      a_row += static_cast<std::size_t>(kRowCounts[i]) * a_pitch_;
      d_row += static_cast<std::size_t>(kRowCounts[i]) * d_pitch_;
    }
    return true;
  }

  std::string kernel_name(std::int64_t rows) const override {
    for (std::size_t i = 0; i < kRowCounts.size(); ++i) {
      if (kRowCounts[i] <= rows && wide_[i] != nullptr) return wide_[i]->name();
    }
    return "";
  }

 private:
  using Kernels = std::array<std::shared_ptr<Kernel>, kRowCounts.size()>;

  void make_kernels(Kernels& kernels, std::int64_t panel, const GemmSpec& spec, std::int64_t max_rows, int threads) {
    a_pitch_ = static_cast<std::size_t>(spec.lda) * size_of(weight_.dtype);
    d_pitch_ = static_cast<std::size_t>(spec.ldd) * size_of(spec.out);
    for (std::size_t i = 0; i < kRowCounts.size(); ++i) {
      if (kRowCounts[i] > max_rows) continue;
      kernels[i] =
          cached_kernel(weight_.dtype, kRowCounts[i], weight_.width_of(panel), weight_.k, weight_.layout(panel), spec);
      kernels[i]->reserve(threads);
      scratch_bytes_ = std::max(scratch_bytes_, kernels[i]->scratch_bytes());
    }
  }

  const OneDnnMatrix& weight_;
  Kernels wide_;
  Kernels narrow_;
  std::size_t a_pitch_ = 0;
  std::size_t d_pitch_ = 0;
  std::size_t scratch_bytes_ = 0;
};

// BF16 pays where the processor has matrix tiles, or multiplies BF16 pairs at least as fast as it multiplies FP32.
// AMD's do; Intel's AVX-512 units take four times as long for a pair's instruction as for FP32's (measured: 80 against
// 150 GFLOP/s on one core).
bool multiplies_bf16_well() {
  if (const char* choice = std::getenv("ONEREC_CPU_BF16")) return std::strcmp(choice, "float32") != 0;
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

// FP32 products with BF16 output have only the library's reference implementation.
bool gemm_supports(const PackedMatrix& weight, const GemmSpec& spec) {
  return spec.out == DType::kF32 || weight.dtype == DType::kBF16;
}

std::shared_ptr<const Gemm> make_gemm(const PackedMatrix& weight, const GemmSpec& spec, std::int64_t max_rows,
                                      int threads) {
  ensure(gemm_supports(weight, spec), "oneDNN has no such product");
  return std::make_shared<OneDnnGemm>(static_cast<const OneDnnMatrix&>(weight), spec, max_rows, threads);
}

}  // namespace onerec::cpu
