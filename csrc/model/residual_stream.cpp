#include "model/residual_stream.h"

namespace onerec {

OpContext& ResidualStream::settled() {
  prepared_chain(context_, waiting_);
  waiting_.clear();
  return context_;
}

void ResidualStream::issue(const PreparedLinearParams& prepared) {
  if (at_once(prepared)) return waiting_.push_back(prepared);
  prepared_linear(settled(), prepared);
}

void ResidualStream::add(const LinearParams& product) {
  linear(settled(), product);
  normed_ = false;
}

void ResidualStream::add(const PreparedLinearParams& prepared) {
  issue(prepared);
  normed_ = false;
}

// A pass that measures sees both ways: the op that may make the norm, and the norm by itself.
void ResidualStream::add(const MoeCombineParams& combine, const RmsNormParams& next) {
  OpContext& context = settled();
  const CombineNormParams both{.combine = combine, .norm = next};
  normed_ = norm_comes_with(context, both);
  normed_ || context.measuring ? combine_norm(context, both) : moe_combine(context, combine);
}

OpContext& ResidualStream::make(const RmsNormParams& norm) {
  OpContext& context = settled();
  if (!normed_) rms_norm(context, norm);
  normed_ = true;
  return context;
}

void ResidualStream::multiply(const RmsNormParams& norm, const LinearParams& product) {
  normed_ ? linear(settled(), product) : issue({.input = norm, .product = product});
}

}  // namespace onerec
