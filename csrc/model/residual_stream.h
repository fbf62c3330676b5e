// The residual stream of a decoder: sub-layers read its norm and add to it. Where the op that ends a sub-layer can make
// the norm that is read next, it does. Products that are each a single kernel with their input wait for those behind
// them, and are issued as one chain.
#pragma once

#include <vector>

#include "ops/combine_norm.h"
#include "ops/prepared_chain.h"

namespace onerec {

// The stream h itself lies where the params say. In all calls `next` and `norm` are the same one: that which is read
// after the last addition.
class ResidualStream {
 public:
  explicit ResidualStream(OpContext& context) : context_(context) {}

  // What every other op of the decoder is issued with: products that wait are issued first.
  OpContext& settled();
  // Names what is issued during its life. A product that waits gets the name of the op that it is issued for.
  Range range(const char* name) { return Range(context_, name); }
  // Whether it would be a single kernel.
  bool at_once(const PreparedLinearParams& prepared) const { return prepared_at_once(context_, prepared); }

  // h has been set by something else.
  void begin() { normed_ = false; }

  // h += what the op makes, with the product's input or without. `next` reads it.
  void add(const LinearParams& product);
  void add(const PreparedLinearParams& prepared);
  void add(const MoeCombineParams& combine, const RmsNormParams& next);

  // Makes the norm, if it is not there. Returns settled().
  OpContext& make(const RmsNormParams& norm);
  // The same, then the product of its only output.
  void multiply(const RmsNormParams& norm, const LinearParams& product);

 private:
  void issue(const PreparedLinearParams& prepared);

  OpContext& context_;
  std::vector<PreparedLinearParams> waiting_;
  bool normed_ = false;  // the norm of h is there
};

}  // namespace onerec
