// Issues an op the three ways in which the engine does, and checks that they agree.
#pragma once

#include <memory>
#include <vector>

#include "core/error.h"
#include "ops/backend.h"
#include "support/device.h"
#include "support/guarded_buffer.h"

namespace onerec::test {

class Runner {
 public:
  explicit Runner(int threads = 2) : backend_(make_test_backend(threads)), stream_(backend_->device().make_stream()) {}

  Backend& backend() { return *backend_; }
  Stream& stream() { return *stream_; }

  // The workspace that the op asks for.
  template <class Issue>
  std::size_t measure(Issue&& issue) {
    OpContext context{.backend = *backend_, .stream = *stream_, .measuring = true};
    issue(context);
    return context.workspace_needed;
  }

  // `issue(OpContext&)` issues the op; `outputs` are all buffers that it writes. Runs it measuring, directly, and
  // recorded with two replays, each from the outputs' contents at the call and with a poisoned workspace of just the
  // size asked for. The three results must agree to the bit; the last one is left in the outputs.
  template <class Issue>
  void run(Issue&& issue, const std::vector<GuardedBuffer*>& outputs) {
    const std::vector<Contents> before = snapshots(outputs);
    GuardedBuffer workspace(measure(issue));
    expect_equal(before, snapshots(outputs), "measuring wrote to an output");

    issue_with(issue, workspace);
    stream_->synchronize();
    const std::vector<Contents> direct = snapshots(outputs);

    restore(outputs, before);
    workspace.poison();
    stream_->begin_recording();
    issue_with(issue, workspace);
    const std::unique_ptr<Recording> recording = stream_->end_recording();
    expect_equal(before, snapshots(outputs), "recording ran the op");
    for (int replay = 0; replay < 2; ++replay) {
      restore(outputs, before);
      workspace.poison();
      recording->replay(*stream_);
      stream_->synchronize();
      expect_equal(direct, snapshots(outputs), "a replay differs from the direct run");
    }

    EXPECT_TRUE(workspace.guards_intact()) << "the op wrote outside its workspace";
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_TRUE(outputs[i]->guards_intact()) << "the op wrote outside output " << i;
    }
  }

  // Runs the op once, directly.
  template <class Issue>
  void run_once(Issue&& issue) {
    GuardedBuffer workspace(measure(issue));
    issue_with(issue, workspace);
    stream_->synchronize();
    EXPECT_TRUE(workspace.guards_intact()) << "the op wrote outside its workspace";
  }

  // The message of the ArgumentError that issuing throws, measuring and for real; empty if neither throws.
  template <class Issue>
  std::string refusal(Issue&& issue) {
    const std::string measured = message_of([&] { measure(issue); });
    GuardedBuffer workspace(std::size_t{1} << 24);
    const std::string issued = message_of([&] { issue_with(issue, workspace); });
    EXPECT_TRUE(measured.empty() || measured == issued) << measured << " | " << issued;
    return issued;
  }

 private:
  using Contents = std::vector<unsigned char>;

  template <class Issue>
  void issue_with(Issue&& issue, const GuardedBuffer& workspace) {
    OpContext context{.backend = *backend_, .stream = *stream_, .workspace = {workspace.data(), workspace.bytes()}};
    issue(context);
  }

  template <class F>
  static std::string message_of(F&& f) {
    try {
      f();
    } catch (const ArgumentError& error) {
      return error.what();
    }
    return "";
  }

  static std::vector<Contents> snapshots(const std::vector<GuardedBuffer*>& buffers) {
    std::vector<Contents> contents;
    for (const GuardedBuffer* buffer : buffers) contents.push_back(buffer->snapshot());
    return contents;
  }

  static void restore(const std::vector<GuardedBuffer*>& buffers, const std::vector<Contents>& contents) {
    for (std::size_t i = 0; i < buffers.size(); ++i) buffers[i]->restore(contents[i]);
  }

  static void expect_equal(const std::vector<Contents>& want, const std::vector<Contents>& got, const char* what) {
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(want[i] == got[i]) << what << " (output " << i << ")";
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace onerec::test
