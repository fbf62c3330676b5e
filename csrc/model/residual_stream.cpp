#include "model/residual_stream.h"

namespace onerec {

void ResidualStream::add(const LinearParams& product) {
  linear(context_, product);
  normed_ = false;
}

void ResidualStream::add(const PreparedLinearParams& prepared) {
  prepared_linear(context_, prepared);
  normed_ = false;
}

// A pass that measures sees both ways: the op that may make the norm, and the norm by itself.
void ResidualStream::add(const MoeCombineParams& combine, const RmsNormParams& next) {
  const CombineNormParams both{.combine = combine, .norm = next};
  normed_ = norm_comes_with(context_, both);
  normed_ || context_.measuring ? combine_norm(context_, both) : moe_combine(context_, combine);
}

void ResidualStream::make(const RmsNormParams& norm) {
  if (!normed_) rms_norm(context_, norm);
  normed_ = true;
}

void ResidualStream::multiply(const RmsNormParams& norm, const LinearParams& product) {
  normed_ ? linear(context_, product) : prepared_linear(context_, {.input = norm, .product = product});
}

}  // namespace onerec
