// Single ops on tensors given by address: what profiling and device tests call from Python.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/item_trie.h"
#include "ops/backend.h"

namespace onerec::bindings {

namespace py = pybind11;

// A backend with one stream. The stream goes first.
struct OpDevice {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

// Handles that Python holds; each keeps the device alive.
struct OpWeight {
  std::shared_ptr<OpDevice> device;
  std::unique_ptr<LinearWeight> weight;
};

struct OpTrie {
  std::shared_ptr<OpDevice> device;
  std::unique_ptr<ItemTrie> trie;
};

// A recorded sequence of ops with everything it reads but the caller's tensors.
struct OpRecording {
  std::shared_ptr<OpDevice> device;
  std::shared_ptr<Buffer> workspace;
  std::vector<std::shared_ptr<const void>> handles;
  std::unique_ptr<Recording> recording;
};

// Tensors are the caller's: they lie on the runner's device, and live until the work that uses them has been done. For
// one thread at a time.
class OpRunner {
 public:
  OpRunner(const std::string& device, int threads);

  std::string device_name() const { return device_->backend->device().name(); }
  std::uintptr_t stream_handle() const { return device_->stream->native_handle(); }
  void synchronize();
  // Overwrites the workspace with a byte: an op may not read what it has not written.
  void poison(int value);

  std::shared_ptr<OpWeight> pack_linear(const py::array& values, const std::string& dtype, const std::string& format,
                                        std::int64_t experts, std::int64_t outputs, std::int64_t inputs,
                                        const py::object& scales);
  std::shared_ptr<OpTrie> make_trie(const py::array& semantic_ids, const std::vector<std::int64_t>& codebook_sizes);

  std::int64_t grouped_alignment(std::int64_t rows, std::int64_t experts, std::int64_t top_k) const {
    return device_->backend->grouped_alignment(rows, experts, top_k);
  }

  // Calls `body` twice: to measure the workspace of the ops that it issues, and to record them.
  std::shared_ptr<OpRecording> record(const py::function& body);
  void replay(const OpRecording& recording);

  // Runs, measures or records `op(context, params)`; a recording keeps `handle`.
  template <class Params>
  void issue(void (*op)(OpContext&, const Params&), const Params& params, std::shared_ptr<const void> handle = nullptr);

 private:
  enum class Mode : std::uint8_t { kRun, kMeasure, kRecord };

  OpContext context(bool measuring) const;
  void reserve(std::size_t bytes);

  std::shared_ptr<OpDevice> device_;
  std::shared_ptr<Buffer> workspace_;
  Mode mode_ = Mode::kRun;
  std::size_t needed_ = 0;
  std::vector<std::shared_ptr<const void>> handles_;
};

template <class Params>
void OpRunner::issue(void (*op)(OpContext&, const Params&), const Params& params, std::shared_ptr<const void> handle) {
  if (mode_ != Mode::kRecord) {
    OpContext measuring = context(true);
    op(measuring, params);
    needed_ = std::max(needed_, measuring.workspace_needed);
  }
  if (mode_ == Mode::kMeasure) return;
  if (mode_ == Mode::kRun) reserve(needed_);
  if (mode_ == Mode::kRecord && handle != nullptr) handles_.push_back(std::move(handle));
  OpContext running = context(false);
  op(running, params);
}

// Adds OpRunner and its handles to the module.
void bind_op_runner(py::module_& module);

}  // namespace onerec::bindings
