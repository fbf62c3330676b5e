// What every op is issued with: the backend, the stream, scratch memory, and whether this pass only measures.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string_view>

#include "ops/device.h"
#include "ops/operand.h"

namespace onerec {

class Backend;

struct Workspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};

// Sees the left-hand side of every linear before it is multiplied, copied to host memory; for tests and statistics,
// never while recording.
class OperandTap {
 public:
  virtual ~OperandTap() = default;
  // `rows`: live rows of `operand`. `weight`: the fused weight's name, such as "model.layers.0.self_attn.qkv_proj".
  virtual void observe(std::string_view weight, const Operand& operand, std::int64_t rows) = 0;
};

// A plan is laid out by issuing every op twice: once measuring (validates, collects the largest scratch need, runs
// nothing) and once for real or for a recording.
struct OpContext {
  Backend& backend;
  Stream& stream;
  Workspace workspace = {};
  Workspace branch_workspace = {};  // of what a Fork issues
  bool measuring = false;
  std::size_t workspace_needed = 0;
  std::size_t branch_workspace_needed = 0;
  OperandTap* tap = nullptr;
  bool fused = true;          // ops may take a backend's kernels that do several of them at once
  bool pending_norms = true;  // norms may be left to the products that read them

  // One in which ops check their params and run nothing, for what issues a backend's kernel in their place.
  OpContext checking() const { return {.backend = backend, .stream = stream, .measuring = true}; }

  void need_workspace(std::size_t bytes) { workspace_needed = std::max(workspace_needed, bytes); }
};

// Ops issued to context() may run beside those that are issued to `main` until join(), in a workspace of their own. Not
// for a context with a tap, which sees one op after the other. What is measured counts for both: the same ops may be
// issued to `main` another time.
class Fork {
 public:
  explicit Fork(OpContext& main)
      : main_(main),
        branch_{.backend = main.backend,
                .stream = main.measuring ? main.stream : main.stream.fork(),
                .workspace = main.branch_workspace,
                .measuring = main.measuring,
                .fused = main.fused,
                .pending_norms = main.pending_norms} {}
  Fork(const Fork&) = delete;
  Fork& operator=(const Fork&) = delete;

  OpContext& context() { return branch_; }

  void join() {
    if (!main_.measuring) return main_.stream.join();
    main_.need_workspace(branch_.workspace_needed);
    main_.branch_workspace_needed = std::max(main_.branch_workspace_needed, branch_.workspace_needed);
  }

 private:
  OpContext& main_;
  OpContext branch_;
};

// Names what is issued during its life; see Stream::begin_range.
class Range {
 public:
  Range(OpContext& context, const char* name) : stream_(context.measuring ? nullptr : &context.stream) {
    if (stream_ != nullptr) stream_->begin_range(name);
  }
  ~Range() {
    if (stream_ != nullptr) stream_->end_range();
  }
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;

 private:
  Stream* stream_;
};

}  // namespace onerec
