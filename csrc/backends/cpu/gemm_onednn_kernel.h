// One matmul primitive of oneDNN, callable by several threads at once. Part of gemm_onednn.cpp.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <mutex>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "backends/cpu/cpu_device.h"
#include "core/dtype.h"

namespace onerec::cpu::onednn {

using dnnl::memory;

inline const dnnl::engine& cpu_engine() {
  static const auto* engine = new dnnl::engine(dnnl::engine::kind::cpu, 0);  // never destroyed: others may outlive main
  return *engine;
}

inline memory::data_type type_of(DType dtype) {
  return dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
}

// FP32 [rows, n] = [rows, k] x `b`, which is [k, n], both of `dtype`, everything but b row-major. The library has fast
// kernels for rows without gaps only; for others it falls back to ones that are tens to thousands of times slower.
inline dnnl::matmul::primitive_desc describe(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k,
                                             const memory::desc& b) {
  const ThreadScope one_thread(1);  // the library plans for the number of threads that it sees
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attributes.set_fpmath_mode(dnnl::fpmath_mode::strict);  // whatever the environment says
  return {cpu_engine(),
          {memory::dims{rows, k}, type_of(dtype), memory::format_tag::ab},
          b,
          {memory::dims{rows, n}, memory::data_type::f32, memory::format_tag::ab},
          attributes};
}

class Kernel {
 public:
  Kernel(DType dtype, std::int64_t rows, std::int64_t n, std::int64_t k, const memory::desc& packed)
      : description_(describe(dtype, rows, n, k, packed)), primitive_(description_) {}

  std::size_t scratch_bytes() const { return description_.scratchpad_desc().get_size(); }
  std::string name() const { return description_.impl_info_str(); }

  // Makes argument sets for so many calls at a time; more are made when needed.
  void reserve(int calls) {
    const std::lock_guard lock(mutex_);
    free_.reserve(static_cast<std::size_t>(std::max(calls, made_)));
    while (made_ < calls) free_.push_back(make_arguments());
  }

  // False if the library failed.
  bool run(const memory& b, const void* a, float* sums, void* scratch) {
    std::unique_ptr<Arguments> arguments = take();
    const auto& [stream, a_memory, sums_memory, scratch_memory] = *arguments;
    const bool ready = dnnl_memory_set_data_handle(a_memory.get(), const_cast<void*>(a)) == dnnl_success &&
                       dnnl_memory_set_data_handle(sums_memory.get(), sums) == dnnl_success &&
                       dnnl_memory_set_data_handle(scratch_memory.get(), scratch) == dnnl_success;
    // The C++ interface would build a map for every call.
    const std::array<dnnl_exec_arg_t, 4> list = {{{DNNL_ARG_SRC, a_memory.get()},
                                                  {DNNL_ARG_WEIGHTS, b.get()},
                                                  {DNNL_ARG_DST, sums_memory.get()},
                                                  {DNNL_ARG_SCRATCHPAD, scratch_memory.get()}}};
    const bool done = ready && dnnl_primitive_execute(primitive_.get(), stream.get(), static_cast<int>(list.size()),
                                                      list.data()) == dnnl_success;
    give(std::move(arguments));
    return done;
  }

 private:
  // Used by one call at a time.
  struct Arguments {
    dnnl::stream stream;
    memory a, sums, scratch;
  };

  std::unique_ptr<Arguments> make_arguments() {
    ++made_;
    const dnnl::engine& engine = cpu_engine();
    return std::make_unique<Arguments>(Arguments{dnnl::stream(engine),
                                                 {description_.src_desc(), engine, DNNL_MEMORY_NONE},
                                                 {description_.dst_desc(), engine, DNNL_MEMORY_NONE},
                                                 {description_.scratchpad_desc(), engine, DNNL_MEMORY_NONE}});
  }

  std::unique_ptr<Arguments> take() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) {
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

  dnnl::matmul::primitive_desc description_;
  dnnl::matmul primitive_;
  std::mutex mutex_;
  int made_ = 0;
  std::vector<std::unique_ptr<Arguments>> free_;
};

}  // namespace onerec::cpu::onednn
