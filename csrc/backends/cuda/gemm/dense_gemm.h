// y = x W^T on tensor cores, with its epilogue. Plain C++ without CUTLASS.
#pragma once

#include <cstddef>
#include <string>

#include "ops/device.h"
#include "ops/linear.h"
#include "ops/linear_norm.h"
#include "ops/linear_swiglu.h"

namespace onerec::cuda {

// Whether dense_gemm takes `params`: FP8 to BF16 (no activation), BF16 to BF16 (anything), BF16 to FP32 (no
// activation, no residual); N and K are multiples of 16; x, W, y, the residual and the bias lie at multiples of 16
// bytes, rows too.
bool dense_gemm_takes(const LinearParams& params);

// Which kernel dense_gemm is best run with, as an index of kGemmConfigs, or kPlainGemm: plain_linear() is faster.
int choose_gemm(const LinearParams& params, int multiprocessors);

// Runs kernel `config`, one of those for the types of `params`. Rows behind the live ones, up to the capacity, may be
// written. Needs no workspace.
void dense_gemm(Stream& stream, const LinearParams& params, int config, int multiprocessors);

// Whether the kernels that choose_gemm and choose_swiglu_gemm name read rows of x whose norm is pending, for such a
// weight.
bool pending_gemm_takes(const LinearWeight& weight, std::int64_t rows, int multiprocessors);

// Whether norm_gemm takes `params`: a product with a residual that dense_gemm takes, for which choose_norm_gemm names
// the split kernel, and of its norm, which is to be left pending as the one before it, the codes alone.
bool norm_gemm_takes(const LinearNormParams& params, int multiprocessors);
int choose_norm_gemm(const LinearNormParams& params, int multiprocessors);
void norm_gemm(Stream& stream, const LinearNormParams& params, int config, int multiprocessors);

// Whether swiglu_gemm takes `params`: FP8 codes with scales of rows and outputs, the width a multiple of 32, the result
// BF16; what is read and written lies at multiples of 16 bytes, rows too.
bool swiglu_gemm_takes(const LinearSwigluParams& params);

// Which kernel swiglu_gemm is best run with, as an index of kSwigluConfigs.
int choose_swiglu_gemm(const LinearSwigluParams& params, int multiprocessors);

// silu(gate) * up, rounded to BF16, into `hidden`: [rows, width], the params' y or part of their gate_up. Writes
// nothing else.
void swiglu_gemm(Stream& stream, const LinearSwigluParams& params, const Matrix& hidden, int config,
                 int multiprocessors);

// Whether swiglu_static_codes_gemm takes `params`: what swiglu_gemm takes, as codes by a static scale.
bool swiglu_static_codes_gemm_takes(const LinearSwigluParams& params);

// Codes of silu(gate) * up by the static scale. Writes nothing else.
void swiglu_static_codes_gemm(Stream& stream, const LinearSwigluParams& params, int config, int multiprocessors);

// Whether swiglu_codes_gemm takes `params`: what swiglu_gemm takes, quantised with a scale per row, of at least as many
// rows as are worth it.
bool swiglu_codes_gemm_takes(const LinearSwigluParams& params);

// What swiglu_codes_gemm needs for params that it may take; depends on sizes and formats alone.
std::size_t swiglu_codes_gemm_workspace(const LinearSwigluParams& params);

// The same as swiglu_gemm into the front of gate_up's memory and quantize() of that: rows are quantised as soon as they
// are complete.
void swiglu_codes_gemm(Stream& stream, const LinearSwigluParams& params, int config, int multiprocessors,
                       Workspace workspace);

// The first columns of gate_up's memory: [rows, width].
Matrix hidden_in_gate_up(const LinearSwigluParams& params);

// For profiling: the configuration as text, such as "fp8_bf16 128x256x128 cluster 2 cooperative".
std::string gemm_name(int config);
std::string swiglu_gemm_name(int config);

// For profiling: linear() with kernel `config` (kPlainGemm: plain_linear) instead of the chosen one.
void linear_with(Stream& stream, const LinearParams& params, int config, int multiprocessors);

}  // namespace onerec::cuda
