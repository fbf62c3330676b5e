// Shows the operands of linears to whoever listens; see OperandTap.
#pragma once

#include <string_view>

#include "ops/context.h"

namespace onerec {

// Does nothing without a tap. With one, waits for the stream to learn the number of live rows.
void observe(OpContext& context, std::string_view weight, const Operand& operand, const Extent& rows);

}  // namespace onerec
