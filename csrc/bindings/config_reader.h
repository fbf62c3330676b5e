// The model's configuration as Python holds it, turned into the core's.
#pragma once

#include <pybind11/pybind11.h>

#include "model/onerec_v2_config.h"

namespace onerec::bindings {

// `config` is OneRecV2Config.to_dict(), checked by Python and with every default filled in.
OneRecV2Config read_config(const pybind11::dict& config);

}  // namespace onerec::bindings
