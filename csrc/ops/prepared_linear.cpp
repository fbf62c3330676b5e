#include "ops/prepared_linear.h"

#include "core/error.h"
#include "ops/backend.h"
#include "ops/checks.h"

namespace onerec {
namespace {

constexpr const char* kOp = "prepared_linear";

const ConstMatrix& read_by(const RmsNormParams& p) { return p.x; }
const ConstMatrix& read_by(const SwigluParams& p) { return p.gate_up; }
const ConstMatrix& read_by(const QuantizeParams& p) { return p.x; }

// Where the op writes: values, or codes.
struct Written {
  const void* data;
  std::int64_t stride;
};

template <class Params>
Written written_by(const Params& p) {
  if (p.quantized.values.data != nullptr) return {p.quantized.values.data, p.quantized.values.stride};
  return {p.y.data, p.y.stride};
}

Written written_by(const QuantizeParams& p) { return {p.quantized.values.data, p.quantized.values.stride}; }

void issue(OpContext& context, const RmsNormParams& p) { rms_norm(context, p); }
void issue(OpContext& context, const SwigluParams& p) { swiglu(context, p); }
void issue(OpContext& context, const QuantizeParams& p) { quantize(context, p); }

template <class Params>
void check(const OpContext& context, const Params& input, const LinearParams& product) {
  const Written written = written_by(input);
  require(written.data == product.x.values.data && written.stride == product.x.values.stride,
          "[prepared_linear] got an input that is not written to product.x, want it there. Pass the same matrix.");
  require(input.rows.capacity == product.rows.capacity && input.rows.count == product.rows.count,
          "[prepared_linear] got an input of ", input.rows.capacity, " rows and a product of ", product.rows.capacity,
          ", want the same rows. Pass the same extent.");
  const std::int64_t rows = product.rows.capacity;
  check_apart(context, kOp, "the input", read_by(input), "y", product.y, rows);
  if (product.residual.data != nullptr) {
    check_apart(context, kOp, "the input", read_by(input), "residual", product.residual, rows);
  }
}

void check(const OpContext& context, const PreparedLinearParams& params) {
  std::visit([&](const auto& input) { check(context, input, params.product); }, params.input);
  const auto* norm = std::get_if<RmsNormParams>(&params.input);
  require(norm == nullptr || ((norm->y.data == nullptr) != (norm->quantized.values.data == nullptr) &&
                              norm->quantized_blocks.values.data == nullptr),
          "[prepared_linear] got a norm of several outputs, want one. Call rms_norm() and linear().");
}

void issue_parts(OpContext& context, const PreparedLinearParams& params) {
  std::visit([&](const auto& input) { issue(context, input); }, params.input);
  linear(context, params.product);
}

}  // namespace

bool prepared_at_once(const OpContext& context, const PreparedLinearParams& params) {
  // Addresses may decide, and those of a measuring pass are not the real ones: it measures the parts. A tap wants to
  // see the input.
  return context.fused && !context.measuring && context.tap == nullptr && context.backend.fuses_prepared_linear(params);
}

void prepared_linear(OpContext& context, const PreparedLinearParams& params) {
  check(context, params);
  issue_as_one(context, params, prepared_at_once(context, params), issue_parts,
               [&] { context.backend.prepared_linear(context.stream, params); });
}

void Backend::prepared_linear(Stream&, const PreparedLinearParams&) { refuse_kernel(kOp); }

}  // namespace onerec
