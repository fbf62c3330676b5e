#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<3>(const DenseGemmCall&);
template const char* run_dense_gemm<4>(const DenseGemmCall&);
template const char* run_dense_gemm<5>(const DenseGemmCall&);

}  // namespace onerec::cuda
