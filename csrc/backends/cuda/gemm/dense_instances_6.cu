#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<18>(const DenseGemmCall&);
template const char* run_dense_gemm<19>(const DenseGemmCall&);

}  // namespace onerec::cuda
