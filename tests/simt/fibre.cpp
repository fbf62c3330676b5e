#include "fibre.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

#if defined(ONEREC_SANITIZE)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext() has the kernel change the signal mask each time, which costs far more than the switch itself.
extern "C" void onerec_simt_switch(void** from, void* to);
extern "C" void onerec_simt_entry();
asm(R"(
.text
.p2align 4
.local onerec_simt_switch
.type onerec_simt_switch, @function
onerec_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size onerec_simt_switch, .-onerec_simt_switch

# Where the first switch into a fibre returns to: its function and argument lie in callee-saved registers.
.p2align 4
.local onerec_simt_entry
.type onerec_simt_entry, @function
onerec_simt_entry:
  movq %r12, %rdi
  callq *%r13
  ud2
.size onerec_simt_entry, .-onerec_simt_entry
)");
#endif

namespace onerec::simt {
namespace {

constexpr std::size_t kGuardBytes = 16 * 1024;
constexpr std::size_t kStackBytes = 256 * 1024;  // of address space; pages are taken when they are touched

// Where a fibre's stack begins below its end. Stacks that all begin at the same place within a page would share a few
// sets of the processor's caches.
std::size_t next_stagger() {
  static std::size_t fibres = 0;
  return fibres++ % 256 * 64;
}

// AddressSanitizer has to know which stack is in use.
void before_switch([[maybe_unused]] void** own_frames, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] std::size_t bytes) {
#if defined(ONEREC_SANITIZE)
  __sanitizer_start_switch_fiber(own_frames, stack, bytes);
#endif
}

void after_switch([[maybe_unused]] void* own_frames, [[maybe_unused]] const void** stack,
                  [[maybe_unused]] std::size_t* bytes) {
#if defined(ONEREC_SANITIZE)
  __sanitizer_finish_switch_fiber(own_frames, stack, bytes);
#endif
}

}  // namespace

struct Fibre::Entry {
  static void run(Fibre* fibre) { fibre->run(); }
  // makecontext() hands over integers only.
  static void run_halves(unsigned low, unsigned high) {
    run(reinterpret_cast<Fibre*>(static_cast<std::uintptr_t>(high) << 32 | low));
  }
};

Fibre::Fibre(std::function<void()> work) : work_(std::move(work)) {
  void* const mapping = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<std::byte*>(mapping);
  mprotect(mapping_, kGuardBytes, PROT_NONE);
  const std::size_t stack_bytes = kStackBytes - next_stagger();
#if defined(__x86_64__)
  // The stack as onerec_simt_switch leaves it, from the top: return address, rbp, rbx, r12 to r15. The entry runs with
  // the stack pointer at `top`, a multiple of 16.
  auto** const top = reinterpret_cast<void**>(mapping_ + kGuardBytes + stack_bytes) - 2;
  top[-1] = reinterpret_cast<void*>(&onerec_simt_entry);
  top[-4] = this;
  top[-5] = reinterpret_cast<void*>(&Entry::run);
  inside_ = top - 7;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = mapping_ + kGuardBytes;
  inside_.uc_stack.ss_size = stack_bytes;
  const auto address = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&inside_, reinterpret_cast<void (*)()>(&Entry::run_halves), 2, static_cast<unsigned>(address),
              static_cast<unsigned>(address >> 32));
#endif
}

Fibre::~Fibre() {
#if defined(ONEREC_SANITIZE)
  __asan_unpoison_memory_region(mapping_ + kGuardBytes, kStackBytes);
#endif
  munmap(mapping_, kGuardBytes + kStackBytes);
}

void Fibre::run() {
  after_switch(nullptr, &outside_stack_, &outside_bytes_);
  for (;;) {
    work_();
    pause();
  }
}

void Fibre::resume() {
  before_switch(&outside_frames_, mapping_ + kGuardBytes, kStackBytes);
#if defined(__x86_64__)
  onerec_simt_switch(&outside_, inside_);
#else
  swapcontext(&outside_, &inside_);
#endif
  after_switch(outside_frames_, nullptr, nullptr);
}

void Fibre::pause() {
  before_switch(&inside_frames_, outside_stack_, outside_bytes_);
#if defined(__x86_64__)
  onerec_simt_switch(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
  after_switch(inside_frames_, &outside_stack_, &outside_bytes_);
}

}  // namespace onerec::simt
