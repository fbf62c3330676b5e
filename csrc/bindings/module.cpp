// onerec_engine._C: what Python sees of the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "backends/registry.h"
#include "bindings/arrays.h"
#include "bindings/core.h"
#include "bindings/held_items.h"
#include "bindings/op_runner.h"
#include "bindings/packer.h"
#include "core/build_info.h"
#include "ops/quantize_weight.h"

namespace onerec::bindings {
namespace {

void register_errors() {
  // Translators are tried last registered first, so a base class comes before the classes derived from it.
  py::register_local_exception_translator([](std::exception_ptr error) {
    const auto raise = [](const char* name, const std::exception& what) {
      py::set_error(py::module_::import("onerec_engine.errors").attr(name), what.what());
    };
    try {
      if (error) std::rethrow_exception(error);
    } catch (const ArgumentError& e) {
      py::set_error(PyExc_ValueError, e.what());
    } catch (const PlanMemoryError& e) {
      raise("OutOfMemoryPlanError", e);
    } catch (const DeviceError& e) {
      raise("DeviceError", e);
    } catch (const StateError& e) {
      raise("EngineError", e);
    } catch (const InternalError& e) {
      py::set_error(PyExc_RuntimeError, e.what());
    }
  });
}

std::map<std::string, std::string> build_information() {
  const std::string reason = why_no_cuda();
  return {{"version", build_info::kVersion},
          {"compiler", build_info::kCompiler},
          {"build_type", build_info::kBuildType},
          {"gemm", build_info::kGemmLibrary},
          {"cuda", reason.empty() ? "on" : "off: " + reason}};
}

using Quantizer = void (*)(DType, const void*, std::int64_t, std::int64_t, std::uint8_t*, float*);

py::tuple quantize_with(Quantizer quantizer, const py::array& values, std::vector<py::ssize_t> scales_shape) {
  const auto input = checked_array<float>("values", values, {-1, -1});
  py::array_t<std::uint8_t> codes({input.shape(0), input.shape(1)});
  py::array_t<float> scales(std::move(scales_shape));
  const float* from = input.data();
  std::uint8_t* to = codes.mutable_data();
  float* scale = scales.mutable_data();
  const std::int64_t rows = input.shape(0);
  const std::int64_t cols = input.shape(1);
  {
    const py::gil_scoped_release release;
    quantizer(DType::kF32, from, rows, cols, to, scale);
  }
  return py::make_tuple(codes, scales);
}

py::tuple quantize_channel_array(const py::array& values) {
  require(values.ndim() == 2, "[quantize] got ", values.ndim(), " axes, want [outputs, inputs].");
  return quantize_with(quantize_channel, values, {values.shape(0)});
}

py::tuple quantize_block_array(const py::array& values) {
  require(values.ndim() == 2, "[quantize] got ", values.ndim(), " axes, want [outputs, inputs].");
  return quantize_with(quantize_block, values, {scale_blocks(values.shape(0)), scale_blocks(values.shape(1))});
}

}  // namespace
}  // namespace onerec::bindings

PYBIND11_MODULE(_C, module) {
  using namespace onerec::bindings;
  module.doc() = "The compiled core of onerec_engine. Use onerec_engine.Engine; nothing here is a stable interface.";
  register_errors();
  module.def("build_info", &build_information, "What this build was made of, by name.");
  module.def("set_matrix_library", &onerec::set_matrix_library, py::arg("path"),
             "Names the file of the matrix library, for builds that load it when it is first needed.");
  module.def("quantize_channel", &quantize_channel_array, py::arg("values"),
             "E4M3 codes uint8 [N, K] and scales float32 [N] of float32 weights [N, K]; see docs/numerics.md.");
  module.def("quantize_block", &quantize_block_array, py::arg("values"),
             "E4M3 codes uint8 [N, K] and scales float32 [ceil(N / 128), ceil(K / 128)] of float32 weights [N, K].");
  py::class_<Core>(module, "Core", "A model on a device with its catalogue and plans.")
      .def(py::init([](const py::dict& config, const std::string& precision, const std::string& experts,
                       const std::string& device, int threads, std::int64_t max_batch, std::int64_t max_rows,
                       std::int64_t max_context_tokens, std::int64_t max_excluded, std::size_t memory_limit, bool fused,
                       bool overlapped) {
             return std::make_unique<Core>(config,
                                           CoreOptions{.precision = precision,
                                                       .experts = experts,
                                                       .device = device,
                                                       .threads = threads,
                                                       .engine = {.limits = {.max_batch = max_batch,
                                                                             .max_rows = max_rows,
                                                                             .max_context_tokens = max_context_tokens,
                                                                             .max_excluded = max_excluded},
                                                                  .memory_limit = memory_limit,
                                                                  .fused = fused,
                                                                  .overlapped = overlapped}});
           }),
           py::arg("config"), py::kw_only(), py::arg("precision"), py::arg("experts"), py::arg("device"),
           py::arg("threads"), py::arg("max_batch"), py::arg("max_rows"), py::arg("max_context_tokens"),
           py::arg("max_excluded"), py::arg("memory_limit"), py::arg("fused") = true, py::arg("overlapped") = true)
      .def_property_readonly("device_name", &Core::device_name)
      .def("tensors", &Core::tensors, "Logical tensors wanted, in loading order: (name, shape, kind).")
      .def("set_tensor", &Core::set_tensor, py::arg("name"), py::arg("values"), py::arg("dtype"),
           py::arg("scales") = py::none(), "Loads one tensor from its raw bytes (uint8, contiguous).")
      .def("finish_loading", &Core::finish_loading, "Checks that no tensor is missing.")
      .def("set_catalogue", &Core::set_catalogue, py::arg("semantic_ids"),
           "Builds the trie of int32 [items, levels]; returns int64 [items]: the item at each trie position.")
      .def("leaf_items", &Core::leaf_items, "int32 [leaves + 1]: each leaf's range of trie positions.")
      .def("run", &Core::run, py::arg("batch"), "One search or scoring from the plan's recording.")
      .def("run_directly", &Core::run_directly, py::arg("batch"), "The same, op by op.")
      .def("run_tapped", &Core::run_tapped, py::arg("batch"),
           "The same, op by op; also every linear's input: (weight, values or codes, scales [rows, blocks]).")
      .def("prepare", &Core::prepare, py::arg("batch"), "Records the plan of such a batch, and runs nothing.")
      .def("memory_plan", &Core::memory_plan, "Bytes in use by purpose.")
      .def("plan_for", &Core::plan_for, py::arg("batch"),
           "Bytes that the engine would take for this batch, by purpose.")
      .def("poison", &Core::poison, py::arg("value"), "Overwrites the arena with a byte; for tests.")
      .def("close", &Core::close, "Frees everything; later calls raise EngineError.");
  bind_held_items(module);
  bind_packer(module);
  bind_op_runner(module);
}
