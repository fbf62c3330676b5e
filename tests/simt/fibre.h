// Fibres: functions with stacks of their own that take turns on one operating-system thread.
#pragma once

#include <cstddef>
#include <functional>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace onerec::simt {

// Runs `work` again and again, once whenever it is resumed after an end; nothing may be thrown out of `work`. A fibre
// that is destroyed while its work is paused drops that work: no destructors run on its stack.
class Fibre {
 public:
  explicit Fibre(std::function<void()> work);
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Runs the fibre until its work pauses or ends. Called from outside of all fibres.
  void resume();
  // Goes back to whoever resumed this fibre. Called from within its work.
  void pause();

 private:
  struct Entry;

  [[noreturn]] void run();

  std::function<void()> work_;
  std::byte* mapping_ = nullptr;  // guard pages and the stack above them
#if defined(__x86_64__)
  // Stack pointers of the two sides, each while the other one runs.
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#else
  ucontext_t inside_{};
  ucontext_t outside_{};
#endif
  // What AddressSanitizer keeps for the side that does not run.
  void* inside_frames_ = nullptr;
  void* outside_frames_ = nullptr;
  const void* outside_stack_ = nullptr;
  std::size_t outside_bytes_ = 0;
};

}  // namespace onerec::simt
