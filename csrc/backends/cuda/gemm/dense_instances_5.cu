#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<15>(const DenseGemmCall&);
template const char* run_dense_gemm<16>(const DenseGemmCall&);
template const char* run_dense_gemm<17>(const DenseGemmCall&);

}  // namespace onerec::cuda
