#include "support/dense_kernels.h"

#include "support/device.h"
#if defined(ONEREC_TEST_CUDA)
#include "backends/cuda/gemm/dense_gemm.h"
#include "backends/cuda/gemm/gemm_configs.h"
#include "core/error.h"
#endif

namespace onerec::test {

#if defined(ONEREC_TEST_CUDA)
namespace {

DenseKernel kernel_of(const cuda::GemmConfig& config, int index, const std::string& name) {
  return {.name = name,
          .config = index,
          .in = cuda::input_bytes(config.types) == 1 ? DType::kE4M3 : DType::kBF16,
          .out = cuda::output_bytes(config.types) == 4 ? DType::kF32 : DType::kBF16,
          .output_multiple = config.schedule == cuda::GemmSchedule::kDirect ? cuda::kDirectMultiple : 16};
}

}  // namespace

std::vector<DenseKernel> dense_kernels() {
  std::vector<DenseKernel> kernels;
  if (test_device() != TestDevice::kCuda) return kernels;
  for (int i = 0; i < cuda::kGemmConfigCount; ++i) {
    kernels.push_back(kernel_of(cuda::kGemmConfigs[i], i, cuda::gemm_name(i)));
  }
  return kernels;
}

std::vector<DenseKernel> dense_pending_kernels() {
  std::vector<DenseKernel> kernels = dense_kernels();
  std::erase_if(kernels, [](const DenseKernel& k) { return !cuda::is_ours(cuda::kGemmConfigs[k.config].schedule); });
  return kernels;
}

std::vector<DenseKernel> dense_norm_kernels() {
  std::vector<DenseKernel> kernels = dense_kernels();
  std::erase_if(kernels, [](const DenseKernel& k) {
    return cuda::kGemmConfigs[k.config].schedule != cuda::GemmSchedule::kSplit;
  });
  return kernels;
}

std::vector<DenseKernel> dense_swiglu_kernels() {
  std::vector<DenseKernel> kernels;
  if (test_device() != TestDevice::kCuda) return kernels;
  for (int i = 0; i < cuda::kSwigluConfigCount; ++i) {
    kernels.push_back(kernel_of(cuda::kSwigluConfigs[i], i, cuda::swiglu_gemm_name(i)));
  }
  return kernels;
}

void run_kernel(Stream& stream, const LinearParams& params, const DenseKernel& kernel, int blocks) {
  cuda::dense_gemm(stream, params, kernel.config, blocks);
}

void run_kernel(Stream& stream, const LinearNormParams& params, const DenseKernel& kernel, int blocks) {
  cuda::norm_gemm(stream, params, kernel.config, blocks);
}

void run_kernel(Stream& stream, const LinearSwigluParams& params, const Matrix& hidden, const DenseKernel& kernel,
                int blocks) {
  cuda::swiglu_gemm(stream, params, hidden, kernel.config, blocks);
}

void run_static_codes_kernel(Stream& stream, const LinearSwigluParams& params, const DenseKernel& kernel, int blocks) {
  ensure(cuda::swiglu_static_codes_gemm_takes(params), "the kernel does not take these params");
  cuda::swiglu_static_codes_gemm(stream, params, kernel.config, blocks);
}

std::size_t codes_workspace(const LinearSwigluParams& params) { return cuda::swiglu_codes_gemm_workspace(params); }

void run_codes_kernel(Stream& stream, const LinearSwigluParams& params, const DenseKernel& kernel, int blocks,
                      Workspace workspace) {
  ensure(cuda::swiglu_codes_gemm_takes(params), "the kernel does not take these params");
  cuda::swiglu_codes_gemm(stream, params, kernel.config, blocks, workspace);
}
#else
std::vector<DenseKernel> dense_kernels() { return {}; }

std::vector<DenseKernel> dense_swiglu_kernels() { return {}; }

std::vector<DenseKernel> dense_pending_kernels() { return {}; }

std::vector<DenseKernel> dense_norm_kernels() { return {}; }

void run_kernel(Stream&, const LinearParams&, const DenseKernel&, int) {}

void run_kernel(Stream&, const LinearNormParams&, const DenseKernel&, int) {}

void run_kernel(Stream&, const LinearSwigluParams&, const Matrix&, const DenseKernel&, int) {}

void run_static_codes_kernel(Stream&, const LinearSwigluParams&, const DenseKernel&, int) {}

std::size_t codes_workspace(const LinearSwigluParams&) { return 0; }

void run_codes_kernel(Stream&, const LinearSwigluParams&, const DenseKernel&, int, Workspace) {}
#endif

}  // namespace onerec::test
