// The residual stream of a decoder: sub-layers read its norm and add to it. Where the op that ends a sub-layer can make
// the norm that is read next, it does.
#pragma once

#include "model/pass_memory.h"
#include "ops/combine_norm.h"
#include "ops/linear_norm.h"
#include "ops/prepared_linear.h"

namespace onerec {

// The stream h itself lies where the params say. In all calls `next` and `norm` are the same one: that which is read
// after the last addition. `reader` is the weight that it is multiplied by, null if there is more than one.
class ResidualStream {
 public:
  // For up to `rows` rows; `coded`: norms are codes with a scale per row. `overflowed`: LinearNormParams::overflowed.
  ResidualStream(OpContext& context, PassMemory& memory, std::int64_t rows, bool coded, std::int32_t* overflowed);

  // h has been set by something else.
  void begin();

  // h += what the op makes, with the product's input or without.
  void add(const LinearParams& product, const RmsNormParams& next, const LinearWeight* reader);
  void add(const PreparedLinearParams& prepared);
  void add(const MoeCombineParams& combine, const RmsNormParams& next, const LinearWeight* reader);

  // Makes the norm, if it is not there.
  void make(const RmsNormParams& norm, const LinearWeight* reader);
  // The norm's codes `x` as make() has left them.
  Operand made(const Operand& x) const { return pending_.values.data != nullptr ? pending_ : x; }
  // Makes the norm and the product of its only output.
  void multiply(const RmsNormParams& norm, const LinearParams& product);

 private:
  // What is pending of a norm lies here; three are in use at a time: one that is read, the one that is made of it, and
  // the one behind that.
  struct Slot {
    float* scales = nullptr;
    std::uint64_t* squares = nullptr;
  };
  static constexpr std::int64_t kSlots = 3;

  bool may_be_pending(const RmsNormParams& norm, const LinearWeight* reader) const;
  // The norm behind the last one, pending if its reader takes that.
  RmsNormParams following(const RmsNormParams& norm, const LinearWeight* reader) const;
  void set(const RmsNormParams& norm);
  void forget();

  OpContext& context_;
  Slot slots_[kSlots];
  std::int32_t* overflowed_;
  std::int64_t uses_ = 0;  // of slots
  int additions_ = 0;      // to h
  bool normed_ = false;    // the norm of h is there
  Operand pending_ = {};   // if it is pending
};

}  // namespace onerec
