// The tensor-core kernels of dense products, one by one. Without a GPU there are none.
#pragma once

#include <string>
#include <vector>

#include "ops/linear.h"
#include "ops/linear_norm.h"
#include "ops/linear_swiglu.h"

namespace onerec::test {

struct DenseKernel {
  std::string name;
  int config;
  DType in;
  DType out;
  std::int64_t output_multiple;
};

std::vector<DenseKernel> dense_kernels();
std::vector<DenseKernel> dense_swiglu_kernels();
// Those of dense_kernels() that read codes whose norm is pending, and those that make them.
std::vector<DenseKernel> dense_pending_kernels();
std::vector<DenseKernel> dense_norm_kernels();

// On `blocks` blocks of the GPU, or as many as form a cluster. Of the swiglu params' results, `hidden` is written.
void run_kernel(Stream& stream, const LinearParams& params, const DenseKernel& kernel, int blocks);
void run_kernel(Stream& stream, const LinearNormParams& params, const DenseKernel& kernel, int blocks);
void run_kernel(Stream& stream, const LinearSwigluParams& params, const Matrix& hidden, const DenseKernel& kernel,
                int blocks);

// Its codes by a static scale.
void run_static_codes_kernel(Stream& stream, const LinearSwigluParams& params, const DenseKernel& kernel, int blocks);

// The same with codes of `hidden`, for params that are taken: the params' quantised result is written, and gate_up.
std::size_t codes_workspace(const LinearSwigluParams& params);
void run_codes_kernel(Stream& stream, const LinearSwigluParams& params, const DenseKernel& kernel, int blocks,
                      Workspace workspace);

}  // namespace onerec::test
