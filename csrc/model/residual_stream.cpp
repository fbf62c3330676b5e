#include "model/residual_stream.h"

namespace onerec {
namespace {

// The first layer may multiply what an embedding has. From the second one on, the scale of a row's norm before an
// addition has room for the norm behind it.
constexpr int kUnsettledAdditions = 3;

}  // namespace

ResidualStream::ResidualStream(OpContext& context, PassMemory& memory, std::int64_t rows, bool coded,
                               std::int32_t* overflowed)
    : context_(context), overflowed_(overflowed) {
  if (!coded) return;
  for (Slot& slot : slots_) {
    slot.scales = memory.array<float>("activations", rows);
    slot.squares = memory.array<std::uint64_t>("activations", rows);
  }
}

void ResidualStream::begin() {
  additions_ = 0;
  forget();
}

void ResidualStream::forget() {
  normed_ = false;
  pending_ = {};
}

bool ResidualStream::may_be_pending(const RmsNormParams& norm, const LinearWeight* reader) const {
  return slots_[0].scales != nullptr && reader != nullptr && norm.y.data == nullptr &&
         norm.quantized_blocks.values.data == nullptr && norm.quantized.scale_kind == ScaleKind::kPerRow &&
         context_.pending_norms && context_.fused && context_.tap == nullptr &&
         context_.backend.reads_pending_norm(*reader, norm.rows.capacity);
}

RmsNormParams ResidualStream::following(const RmsNormParams& norm, const LinearWeight* reader) const {
  if (!may_be_pending(norm, reader)) return norm;
  RmsNormParams params = norm;
  const Slot& slot = slots_[(uses_ + 1) % kSlots];
  params.quantized.scales = slot.scales;
  params.quantized.pending = {.squares = slot.squares,
                              .next_squares = slots_[(uses_ + 2) % kSlots].squares,
                              .width = norm.width,
                              .unit = 1.0f / norm_code_scale(norm.gamma_magnitude),
                              .eps = norm.eps};
  return params;
}

void ResidualStream::set(const RmsNormParams& norm) {
  normed_ = true;
  pending_ = {};
  if (norm.quantized.pending.squares == nullptr) return;
  ++uses_;
  pending_ = norm.quantized;
}

// A pass that measures sees both ways: the op that may make the norm, and the norm by itself.
void ResidualStream::add(const LinearParams& product, const RmsNormParams& next, const LinearWeight* reader) {
  const bool settled = ++additions_ > kUnsettledAdditions;
  const LinearNormParams both{
      .product = product, .norm = following(next, reader), .previous = pending_, .overflowed = overflowed_};
  if (settled && norm_comes_with(context_, both)) {
    linear_norm(context_, both);
    return set(both.norm);
  }
  context_.measuring ? linear_norm(context_, both) : linear(context_, product);
  forget();
}

void ResidualStream::add(const PreparedLinearParams& prepared) {
  ++additions_;
  prepared_linear(context_, prepared);
  forget();
}

void ResidualStream::add(const MoeCombineParams& combine, const RmsNormParams& next, const LinearWeight* reader) {
  ++additions_;
  const CombineNormParams both{.combine = combine, .norm = following(next, reader)};
  if (norm_comes_with(context_, both)) {
    combine_norm(context_, both);
    return set(both.norm);
  }
  context_.measuring ? combine_norm(context_, both) : moe_combine(context_, combine);
  forget();
}

void ResidualStream::make(const RmsNormParams& norm, const LinearWeight* reader) {
  if (normed_) return;
  const RmsNormParams params = following(norm, reader);
  rms_norm(context_, params);
  set(params);
}

void ResidualStream::multiply(const RmsNormParams& norm, const LinearParams& product) {
  const PreparedLinearParams both{.input = norm, .product = product};
  if (!normed_ && (prepared_at_once(context_, both) || !may_be_pending(norm, product.weight))) {
    return prepared_linear(context_, both);
  }
  make(norm, product.weight);
  LinearParams params = product;
  params.x = made(product.x);
  linear(context_, params);
}

}  // namespace onerec
