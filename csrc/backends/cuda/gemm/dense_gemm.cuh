// The dense matrix product of kernel kGemmConfigs[kConfig], on CUTLASS's warp-specialised Hopper kernels.
//
// A configuration is a tile of y (tile_rows x tile_outputs) that a thread block makes in steps of tile_bytes along K,
// how many row tiles form a cluster (they load each tile of W once), and the schedule. To add one: a line in
// gemm_configs.h, a line in a dense_instances_<i>.cu (three per file: a kernel takes half a minute and a gigabyte to
// compile); the compiler's report must show no spills and no C75xx warning. gemm_select.cpp then weighs it, and
// measured_gemms.h can prefer it for a shape.
//
// Order of the epilogue: product, weight scale, row scale, bias, activation, residual, one rounding. What a call leaves
// out is a neutral constant (no vector is read for it, no tile of the residual loaded).
//
// Programmatic dependent launch: every warp passes LiveRowsScheduler's constructor, which waits for the previous
// kernel, before it reads x, scales, bias, the residual or the number of live rows, or writes y.
#pragma once

#if !defined(CUTLASS_ENABLE_GDC_FOR_SM90)
#error "compile with -DCUTLASS_ENABLE_GDC_FOR_SM90=1"
#endif

#include <cutlass/cutlass.h>
#include <cutlass/epilogue/thread/activation.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>
#include <cutlass/numeric_types.h>
#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_callbacks_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/dispatch_policy.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "backends/cuda/gemm/dense_instances.h"
#include "backends/cuda/gemm/live_rows_scheduler.cuh"

namespace onerec::cuda::dense {

namespace fusion = cutlass::epilogue::fusion;

template <class Tile>
using OutputVector = fusion::Sm90RowBroadcast<0, Tile, float, float, cute::Stride<cute::_0, cute::_1, cute::_0>>;
template <class Tile>
using RowVector = fusion::Sm90ColBroadcast<0, Tile, float, float, cute::Stride<cute::_1, cute::_0, cute::_0>>;

template <template <class> class Function, class Out = float>
using Compute = fusion::Sm90Compute<Function, Out, float, cutlass::FloatRoundStyle::round_to_nearest>;

// present * residual + value, rounded; the residual is not loaded if `present` is 0.
template <class Out, class Value>
using AddResidual = fusion::Sm90EVT<Compute<cutlass::homogeneous_multiply_add, Out>, fusion::Sm90ScalarBroadcast<float>,
                                    fusion::Sm90SrcFetch<Out>, Value>;

template <class Node, class Value>
typename Node::Arguments residual_arguments(const DenseGemmCall& call, const Value& value) {
  return {{{call.residual == nullptr ? 0.0f : 1.0f}, {nullptr}, {}}, {}, value, {}};
}

// Per combination of types: elements, the epilogue's tree, and its arguments.
template <GemmTypes kTypes, class Tile>
struct Types;

template <class Tile>
struct Types<GemmTypes::kFp8ToBf16, Tile> {
  using In = cutlass::float_e4m3_t;
  using Out = cutlass::bfloat16_t;
  using Residual = Out;
  using Scaled = fusion::Sm90EVT<Compute<cutlass::multiplies>, OutputVector<Tile>, fusion::Sm90AccFetch>;
  using Biased =
      fusion::Sm90EVT<Compute<cutlass::homogeneous_multiply_add>, RowVector<Tile>, Scaled, OutputVector<Tile>>;
  using Epilogue = AddResidual<Out, Biased>;

  static typename Epilogue::Arguments arguments(const DenseGemmCall& call) {
    const typename Scaled::Arguments scaled = {{call.weight_scales}, {}, {}};
    const typename Biased::Arguments biased = {{call.x_scales}, scaled, {call.bias}, {}};
    return residual_arguments<Epilogue>(call, biased);
  }
};

template <class Tile>
struct Types<GemmTypes::kBf16ToBf16, Tile> {
  using In = cutlass::bfloat16_t;
  using Out = cutlass::bfloat16_t;
  using Residual = Out;
  using Biased = fusion::Sm90EVT<Compute<cutlass::plus>, fusion::Sm90AccFetch, OutputVector<Tile>>;
  using Active = fusion::Sm90EVT<Compute<cutlass::epilogue::thread::LeakyReLU>, Biased>;
  using Epilogue = AddResidual<Out, Active>;

  static typename Epilogue::Arguments arguments(const DenseGemmCall& call) {
    const typename Biased::Arguments biased = {{}, {call.bias}, {}};
    const typename Active::Arguments active = {biased, {call.negative_slope}};
    return residual_arguments<Epilogue>(call, active);
  }
};

template <class Tile>
struct Types<GemmTypes::kBf16ToF32, Tile> {
  using In = cutlass::bfloat16_t;
  using Out = float;
  using Residual = void;
  using Epilogue = fusion::Sm90EVT<Compute<cutlass::plus>, fusion::Sm90AccFetch, OutputVector<Tile>>;

  static typename Epilogue::Arguments arguments(const DenseGemmCall& call) { return {{}, {call.bias}, {}}; }
};

template <bool kFp8, GemmSchedule kSchedule>
struct Schedules {
  using Mainloop = std::conditional_t<kFp8, cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum,
                                      cutlass::gemm::KernelTmaWarpSpecializedPingpong>;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
};

template <bool kFp8>
struct Schedules<kFp8, GemmSchedule::kCooperative> {
  using Mainloop = std::conditional_t<kFp8, cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum,
                                      cutlass::gemm::KernelTmaWarpSpecializedCooperative>;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
};

template <int kConfig>
struct Kernel {
  static constexpr GemmConfig kDescription = kGemmConfigs[kConfig];
  static constexpr int kTileK = kDescription.tile_bytes / input_bytes(kDescription.types);
  using Tile = cute::Shape<cute::Int<kDescription.tile_rows>, cute::Int<kDescription.tile_outputs>, cute::Int<kTileK>>;
  using Cluster = cute::Shape<cute::Int<kDescription.cluster>, cute::_1, cute::_1>;
  using Elements = Types<kDescription.types, Tile>;
  using In = typename Elements::In;
  using Out = typename Elements::Out;
  using Schedule = Schedules<kDescription.types == GemmTypes::kFp8ToBf16, kDescription.schedule>;

  static constexpr int kInAlignment = 16 / sizeof(In);
  static constexpr int kOutAlignment = 16 / sizeof(Out);
  using RowMajor = cutlass::layout::RowMajor;
  using ColumnMajor = cutlass::layout::ColumnMajor;  // W as [K, N]

  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, typename Elements::Residual, RowMajor,
      kOutAlignment, Out, RowMajor, kOutAlignment, typename Schedule::Epilogue,
      typename Elements::Epilogue>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, In, RowMajor, kInAlignment, In, ColumnMajor, kInAlignment,
      float, Tile, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename Epilogue::SharedStorage))>,
      typename Schedule::Mainloop>::CollectiveOp;
  using Universal = cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue, LiveRows>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<Universal>;
  static_assert(Universal::SharedStorageSize <= 227 * 1024, "more shared memory than a thread block may have");

  static typename Gemm::Arguments arguments(const DenseGemmCall& call) {
    typename Gemm::Arguments a{};
    a.mode = cutlass::gemm::GemmUniversalMode::kGemm;
    a.problem_shape = {call.rows, call.outputs, call.inputs, 1};
    a.mainloop.ptr_A = static_cast<const In*>(call.x);
    a.mainloop.dA = {call.x_stride, cute::_1{}, 0};
    a.mainloop.ptr_B = static_cast<const In*>(call.weights);
    a.mainloop.dB = {call.inputs, cute::_1{}, 0};
    a.epilogue.thread = Elements::arguments(call);
    if constexpr (!std::is_void_v<typename Elements::Residual>) {
      // A descriptor is made even if nothing is loaded: y serves then.
      const bool present = call.residual != nullptr;
      a.epilogue.ptr_C = static_cast<const Out*>(present ? call.residual : call.y);
      a.epilogue.dC = {present ? call.residual_stride : call.y_stride, cute::_1{}, 0};
    }
    a.epilogue.ptr_D = static_cast<Out*>(call.y);
    a.epilogue.dD = {call.y_stride, cute::_1{}, 0};
    a.hw_info.sm_count = call.multiprocessors;
    a.scheduler.live_rows = call.live_rows;
    return a;
  }
};

}  // namespace onerec::cuda::dense

namespace onerec::cuda {

template <int kConfig>
const char* run_dense_gemm(const DenseGemmCall& call) {
  using Gemm = typename dense::Kernel<kConfig>::Gemm;
  const typename Gemm::Arguments arguments = dense::Kernel<kConfig>::arguments(call);
  cutlass::Status status = Gemm::can_implement(arguments);
  Gemm gemm;
  if (status == cutlass::Status::kSuccess) status = gemm.initialize(arguments, nullptr, call.stream);
  if (status == cutlass::Status::kSuccess) status = gemm.run(call.stream, nullptr, call.overlapped);
  return status == cutlass::Status::kSuccess ? nullptr : cutlass::cutlassGetStatusString(status);
}

}  // namespace onerec::cuda
