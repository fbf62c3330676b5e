#include "backends/cuda/gemm/dense_gemm.cuh"

namespace onerec::cuda {

template const char* run_dense_gemm<9>(const DenseGemmCall&);
template const char* run_dense_gemm<10>(const DenseGemmCall&);

}  // namespace onerec::cuda
