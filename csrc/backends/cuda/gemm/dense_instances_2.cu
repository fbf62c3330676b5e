#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<6>(const DenseGemmCall&);
template const char* run_dense_gemm<7>(const DenseGemmCall&);
template const char* run_dense_gemm<8>(const DenseGemmCall&);

}  // namespace onerec::cuda
