// The engine core as a Python object.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>

#include "engine/generation_engine.h"

namespace onerec::bindings {

namespace py = pybind11;

struct CoreOptions {
  std::string precision;
  std::string experts;
  std::string device;
  int threads = 0;
  EngineOptions engine;
};

// Every method that computes releases the GIL. close() may come at any time: a run in flight ends first.
class Core {
 public:
  Core(const py::dict& config, const CoreOptions& options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  const std::string& device_name() const { return device_name_; }
  py::list tensors() const;
  void set_tensor(const std::string& name, const py::array& values, const std::string& dtype,
                  const std::optional<py::array>& scales);
  void finish_loading();
  py::array_t<std::int64_t> set_catalogue(const py::array& semantic_ids);
  py::array_t<std::int32_t> leaf_items() const;
  py::dict run(const py::dict& batch);
  py::dict run_directly(const py::dict& batch);
  py::tuple run_tapped(const py::dict& batch);
  void prepare(const py::dict& batch);
  py::dict memory_plan() const;
  py::dict plan_for(const py::dict& batch) const;
  void poison(int value);
  void close();

 private:
  std::shared_ptr<GenerationEngine> engine() const;
  py::dict run_with(const py::dict& batch, bool directly, OperandTap* tap);

  std::string device_name_;
  std::vector<std::string> pathway_names_;
  std::shared_ptr<GenerationEngine> engine_;
};

}  // namespace onerec::bindings
