// The shared memory of a block of the tensor-core cross-attention, and how the tensor cores see it.
#pragma once

#include <cute/algorithm/gemm.hpp>
#include <cute/arch/mma_sm90.hpp>
#include <cute/atom/mma_atom.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cute/tensor.hpp>

#include "backends/cuda/kernels/attention_layout.cuh"
#include "backends/cuda/kernels/flash_attention_arguments.cuh"

namespace onerec::cuda::kernels {

template <int kHeadDim_, ContextTensors kContext_, bool kPaired_>
struct FlashAttentionConfig {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kPaired = kPaired_;
  static constexpr bool kShared = kContext_ == ContextTensors::kShared;
  static constexpr int kConsumers = kFlashWarpgroups;  // warpgroups that multiply
  static constexpr int kTokens = tokens_of_tile(kHeadDim, kShared);
  static constexpr int kRings = kShared ? 1 : 2;
  static constexpr bool kTurns = true;  // the warpgroups take turns at starting products
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kPanels = kHeadDim / kPanelColumns;
  static constexpr int kChunks = kHeadDim / kChunkColumns;

  // A ring has as many stages as fit.
  static constexpr int kQueryBytes = kWarpgroupRows * kHeadDim * 2;  // of a warpgroup and slot
  static constexpr int kTileBytes = kTokens * kHeadDim * 2;
  static constexpr int kRingOffset = kConsumers * kItemSlots * kQueryBytes;
  static constexpr int kMostBytes = 227 * 1024;                // of a block
  static constexpr int kMailBytes = kPaired ? kUnitBytes : 0;  // of the unit behind the sums
  static constexpr int kSmallBytes = 512 + kMailBytes;         // with items and barriers, at most
  static constexpr int kMostStages = 5;
  static constexpr int kFittingStages = (kMostBytes - kSmallBytes - kRingOffset) / (kRings * kTileBytes);
  static constexpr int kStages = kFittingStages < kMostStages ? kFittingStages : kMostStages;
  static constexpr int kMailOffset = kRingOffset + kRings * kStages * kTileBytes;
  static constexpr int kItemOffset = kMailOffset + kMailBytes;
  static constexpr int kBarrierOffset = kItemOffset + kItemSlots * static_cast<int>(sizeof(AttentionItem));
  static constexpr int kSharedBytes = kBarrierOffset + (kRings * kStages + kItemSlots) * 2 * 8 + (kPaired ? 8 : 0);
  static_assert(kStages >= 2, "two tiles are in use at a time");

  // Sums of a thread, in units that are sent.
  static constexpr int kUnits = kHeadDim / 2 / kUnitSums;
  static constexpr int kSlotUnits = kQueryBytes / kUnitBytes;  // in a slot of queries
  static_assert(kUnits == kConsumers * kSlotUnits, "the second slots of all warpgroups hold a warpgroup's sums");
  static_assert(kSharedBytes <= kMostBytes);

  // Registers per thread of the copying and of the multiplying warpgroups; together the 168 that all start with.
  static constexpr int kCopyRegisters = 40;
  static constexpr int kMultiplyRegisters = 232;
};

// The same bytes seen by the two products: keys [token, column] and values [column, token].
template <class Config>
struct FlashAttentionLayouts {
  using Element = cute::bfloat16_t;
  using Queries = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_K_SW128_Atom<Element>{},
      cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kHeadDim>, cute::Int<kItemSlots>>{}));
  using Keys = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_K_SW128_Atom<Element>{},
      cute::Shape<cute::Int<Config::kTokens>, cute::Int<Config::kHeadDim>, cute::Int<Config::kStages>>{}));
  using Values = decltype(cute::tile_to_shape(
      cute::GMMA::Layout_MN_SW128_Atom<Element>{},
      cute::Shape<cute::Int<Config::kHeadDim>, cute::Int<Config::kTokens>, cute::Int<Config::kStages>>{},
      cute::Step<cute::_2, cute::_1, cute::_3>{}));
  using ScoreMma = decltype(cute::make_tiled_mma(
      cute::GMMA::ss_op_selector<
          Element, Element, float,
          cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kTokens>, cute::Int<Config::kHeadDim>>,
          cute::GMMA::Major::K, cute::GMMA::Major::K>()));
  using ValueMma = decltype(cute::make_tiled_mma(
      cute::GMMA::rs_op_selector<
          Element, Element, float,
          cute::Shape<cute::Int<kWarpgroupRows>, cute::Int<Config::kHeadDim>, cute::Int<Config::kTokens>>,
          cute::GMMA::Major::K, cute::GMMA::Major::MN>()));
};

// Barriers: `filled` by copies, one arrival; `emptied` by the warps of all multiplying warpgroups.
template <class Config>
class FlashAttentionMemory {
 public:
  __device__ explicit FlashAttentionMemory(unsigned char* shared) : shared_(shared) {}

  // The slots of a warpgroup lie one behind the other.
  __device__ unsigned char* queries(int consumer, int slot = 0) const {
    return shared_ + (consumer * kItemSlots + slot) * Config::kQueryBytes;
  }
  __device__ AttentionItem* item(int slot) const {
    return reinterpret_cast<AttentionItem*>(shared_ + Config::kItemOffset) + slot;
  }
  __device__ std::uint64_t* item_filled(int slot) const { return barriers() + 2 * slot; }
  __device__ std::uint64_t* item_emptied(int slot) const { return barriers() + 2 * slot + 1; }

  // Ring 0 holds the keys; the last ring the values, which may be the same.
  __device__ unsigned char* ring(int ring, int stage = 0) const {
    return shared_ + Config::kRingOffset + (ring * Config::kStages + stage) * Config::kTileBytes;
  }
  __device__ std::uint64_t* filled(int ring, int stage) const { return ring_barriers(ring, stage); }
  __device__ std::uint64_t* emptied(int ring, int stage) const { return ring_barriers(ring, stage) + 1; }

  // Of a pair: counts what is sent to this block, in the units from 0 to kUnits.
  __device__ std::uint64_t* mail() const { return barriers() + 2 * (kItemSlots + Config::kRings * Config::kStages); }
  __device__ unsigned char* sent(int unit) const {
    if (unit == Config::kUnits) return shared_ + Config::kMailOffset;
    return queries(unit / Config::kSlotUnits, 1) + unit % Config::kSlotUnits * kUnitBytes;
  }

  static constexpr int kKeys = 0;
  static constexpr int kValues = Config::kRings - 1;

 private:
  __device__ std::uint64_t* barriers() const {
    return reinterpret_cast<std::uint64_t*>(shared_ + Config::kBarrierOffset);
  }
  __device__ std::uint64_t* ring_barriers(int ring, int stage) const {
    return barriers() + 2 * (kItemSlots + ring * Config::kStages + stage);
  }

  unsigned char* shared_;
};

}  // namespace onerec::cuda::kernels
