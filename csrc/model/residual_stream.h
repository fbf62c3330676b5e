// The residual stream of a decoder: sub-layers read its norm and add to it. Where the op that ends a sub-layer can make
// the norm that is read next, it does.
#pragma once

#include "ops/combine_norm.h"
#include "ops/prepared_linear.h"

namespace onerec {

// The stream h itself lies where the params say. In all calls `next` and `norm` are the same one: that which is read
// after the last addition.
class ResidualStream {
 public:
  explicit ResidualStream(OpContext& context) : context_(context) {}

  // h has been set by something else.
  void begin() { normed_ = false; }

  // h += what the op makes, with the product's input or without. `next` reads it.
  void add(const LinearParams& product);
  void add(const PreparedLinearParams& prepared);
  void add(const MoeCombineParams& combine, const RmsNormParams& next);

  // Makes the norm, if it is not there.
  void make(const RmsNormParams& norm);
  // The same, then the product of its only output.
  void multiply(const RmsNormParams& norm, const LinearParams& product);

 private:
  OpContext& context_;
  bool normed_ = false;  // the norm of h is there
};

}  // namespace onerec
