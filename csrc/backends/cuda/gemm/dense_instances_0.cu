#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<0>(const DenseGemmCall&);
template const char* run_dense_gemm<1>(const DenseGemmCall&);
template const char* run_dense_gemm<2>(const DenseGemmCall&);

}  // namespace onerec::cuda
