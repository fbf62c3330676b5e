#include "executor.h"

#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda_names.h"
#include "fibre.h"
#include "shared_memory.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace onerec::simt {
namespace {

constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxSharedBytes = 227 * 1024;

enum class State : std::uint8_t { kReady, kAtBarrier, kInCollective, kReturned };

struct Thread {
  uint3 index = {};
  State state = State::kReady;
  bool waited_for_previous_kernel = false;
  Where where = {};  // of its last barrier or collective
  // Of kInCollective.
  Collective kind = Collective::kSync;
  unsigned mask = 0;
  unsigned source = 0;
  std::uint64_t operand = 0;
  std::uint64_t result = 0;
};

std::string line_of(const Where& where) { return concat(where.file_name(), ":", where.line()); }

std::string describe(const Thread& thread) {
  switch (thread.state) {
    case State::kReady:
      return "runs";
    case State::kAtBarrier:
      return concat("waits at __syncthreads() (", line_of(thread.where), ")");
    case State::kInCollective:
      return concat("waits for lanes 0x", std::hex, thread.mask, std::dec, " of its warp (", line_of(thread.where),
                    ")");
    default:
      return "has returned";
  }
}

std::uint64_t equal_lanes(const Thread* lanes, unsigned mask, std::uint64_t operand) {
  std::uint64_t equal = 0;
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const int i = std::countr_zero(left);
    equal |= std::uint64_t{lanes[i].operand == operand} << i;
  }
  return equal;
}

class Executor {
 public:
  void run(const KernelLaunch& launch, const std::function<void()>& body);

  void sync_block(Where where) {
    thread().where = where;
    wait_as(State::kAtBarrier);
  }

  std::uint64_t sync_warp(Collective kind, unsigned mask, std::uint64_t operand, unsigned source, Where where);

  Thread& thread() { return threads_[current_]; }
  unsigned lane() const { return current_ % kWarp; }
  void* dynamic_shared() { return dynamic_shared_->data(); }

 private:
  void run_block();
  bool run_warp(unsigned warp);
  void resume(unsigned index);
  void wait_as(State state) {
    thread().state = state;
    fibres_[current_]->pause();
  }
  bool all_agree(unsigned warp, unsigned mask, Collective kind) const;
  void release(unsigned warp, unsigned mask, Collective kind);
  // From within a thread: stops the launch with this message.
  [[gnu::cold, gnu::noinline]] void fail(const char* what, const Where& where) {
    failure_ = concat(what, " (", line_of(where), ")");
    fibres_[current_]->pause();
  }
  [[noreturn]] void stop(const std::string& message);
  std::string describe_all() const;

  std::vector<std::unique_ptr<Fibre>> fibres_;  // made when first needed, kept for later blocks
  std::array<Thread, kMaxThreads> threads_;
  std::array<unsigned, kMaxThreads / kWarp> arrived_{};  // lanes of each warp that are in a collective
  unsigned count_ = 0;                                   // threads of a block
  unsigned returned_ = 0;
  unsigned current_ = 0;
  bool backwards_ = false;
  const KernelLaunch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  DynamicShared* dynamic_shared_ = nullptr;
  std::string failure_;
};

Executor& executor() {
  static Executor instance;
  return instance;
}

void Executor::run(const KernelLaunch& launch, const std::function<void()>& body) {
  count_ = launch.block.x * launch.block.y * launch.block.z;
  ensure(count_ >= 1 && count_ <= kMaxThreads, "kernel '", launch.name, "' has blocks of ", count_, " threads");
  ensure(launch.shared_bytes <= kMaxSharedBytes, "kernel '", launch.name, "' asks for ", launch.shared_bytes,
         " bytes of shared memory");
  ensure(launch.grid.y <= 65535 && launch.grid.z <= 65535, "kernel '", launch.name, "' has too large a grid");
  while (fibres_.size() < count_) {
    fibres_.push_back(std::make_unique<Fibre>([this, index = fibres_.size()] {
      (*body_)();
      if (!threads_[index].waited_for_previous_kernel)
        fail("a thread returned without wait_for_previous_kernel()", threads_[index].where);
      threads_[index].state = State::kReturned;
    }));
  }
  launch_ = &launch;
  body_ = &body;
  backwards_ = !backwards_;
  blockDim = launch.block;
  gridDim = launch.grid;
  StaticShared static_shared;
  DynamicShared dynamic_shared(launch.shared_bytes);
  dynamic_shared_ = &dynamic_shared;
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t block = backwards_ ? blocks - 1 - i : i;
    blockIdx.x = static_cast<unsigned>(block % launch.grid.x);
    blockIdx.y = static_cast<unsigned>(block / launch.grid.x % launch.grid.y);
    blockIdx.z = static_cast<unsigned>(block / launch.grid.x / launch.grid.y);
    static_shared.poison();
    dynamic_shared.poison();
    run_block();
    if (!dynamic_shared.guards_intact()) stop("a thread wrote outside of the dynamic shared memory");
  }
}

void Executor::run_block() {
  const dim3& block = launch_->block;
  for (unsigned i = 0; i < count_; ++i) {
    threads_[i] = Thread{.index = {i % block.x, i / block.x % block.y, i / block.x / block.y}};
  }
  arrived_ = {};
  returned_ = 0;
  const unsigned warps = (count_ + kWarp - 1) / kWarp;
  while (returned_ < count_) {
    bool progress = false;
    for (unsigned i = 0; i < warps; ++i) progress = run_warp(backwards_ ? warps - 1 - i : i) || progress;
    if (progress) continue;
    for (unsigned i = 0; i < count_; ++i) {
      if (threads_[i].state != State::kAtBarrier) stop(concat("the threads wait for each other:", describe_all()));
    }
    for (unsigned i = 0; i < count_; ++i) threads_[i].state = State::kReady;
  }
}

// Runs the threads of a warp until none of them is ready. Returns whether any was.
bool Executor::run_warp(unsigned warp) {
  const unsigned first = warp * kWarp;
  const unsigned lanes = std::min(kWarp, count_ - first);
  bool any = false;
  for (bool again = true; again;) {
    again = false;
    for (unsigned i = 0; i < lanes; ++i) {
      const unsigned index = first + (backwards_ ? lanes - 1 - i : i);
      if (threads_[index].state != State::kReady) continue;
      resume(index);
      again = any = true;
    }
  }
  return any;
}

void Executor::resume(unsigned index) {
  current_ = index;
  threadIdx = threads_[index].index;
  fibres_[index]->resume();
  if (!failure_.empty()) stop(failure_);
  if (threads_[index].state == State::kReturned) ++returned_;
}

std::uint64_t Executor::sync_warp(Collective kind, unsigned mask, std::uint64_t operand, unsigned source, Where where) {
  Thread& self = thread();
  self.state = State::kInCollective;
  self.where = where;
  self.kind = kind;
  self.mask = mask;
  self.operand = operand;
  self.source = source;
  const unsigned lanes = std::min(kWarp, count_ - (current_ - lane()));
  if ((mask >> lane() & 1u) == 0) fail("a thread is not in the mask that it passes", where);
  if (lanes < kWarp && mask >> lanes != 0) fail("a mask names lanes that the block has not", where);
  if (kind == Collective::kShuffle && (mask >> source & 1u) == 0) {
    fail("a thread reads a lane that does not take part", where);
  }
  const unsigned warp = current_ / kWarp;
  arrived_[warp] |= 1u << lane();
  if ((arrived_[warp] & mask) == mask && all_agree(warp, mask, kind)) {
    release(warp, mask, kind);
  } else {
    fibres_[current_]->pause();
  }
  return self.result;
}

// The lanes of `mask` wait for one another, and not some of them for others.
bool Executor::all_agree(unsigned warp, unsigned mask, Collective kind) const {
  const Thread* const lanes = &threads_[warp * kWarp];
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const Thread& other = lanes[std::countr_zero(left)];
    if (other.mask != mask || other.kind != kind) return false;
  }
  return true;
}

// All lanes of `mask` have arrived: works their results out and lets them go on.
void Executor::release(unsigned warp, unsigned mask, Collective kind) {
  Thread* const lanes = &threads_[warp * kWarp];
  std::uint64_t nonzero = 0;
  for (unsigned left = mask; left != 0 && kind == Collective::kBallot; left &= left - 1) {
    const int i = std::countr_zero(left);
    nonzero |= std::uint64_t{lanes[i].operand != 0} << i;
  }
  for (unsigned left = mask; left != 0; left &= left - 1) {
    Thread& one = lanes[std::countr_zero(left)];
    one.state = State::kReady;
    if (kind == Collective::kShuffle) one.result = lanes[one.source].operand;
    if (kind == Collective::kBallot) one.result = nonzero;
    if (kind == Collective::kMatch) one.result = equal_lanes(lanes, mask, one.operand);
  }
  arrived_[warp] &= ~mask;
}

void Executor::stop(const std::string& message) {
  const std::string text = concat("[simt] kernel '", launch_->name, "', block (", blockIdx.x, ", ", blockIdx.y, ", ",
                                  blockIdx.z, "), thread ", current_, ": ", message);
  failure_.clear();
  fibres_.clear();
  throw InternalError(text);
}

// Consecutive threads in the same state on one line.
std::string Executor::describe_all() const {
  std::string text;
  for (unsigned i = 0; i < count_;) {
    unsigned end = i + 1;
    while (end < count_ && describe(threads_[end]) == describe(threads_[i])) ++end;
    text += concat("\n  ", end - i == 1 ? concat("thread ", i) : concat("threads ", i, " to ", end - 1), ": ",
                   describe(threads_[i]));
    i = end;
  }
  return text;
}

}  // namespace

void run_kernel(const KernelLaunch& launch, const std::function<void()>& thread) {
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  executor().run(launch, thread);
}

void sync_block(Where where) { executor().sync_block(where); }

std::uint64_t sync_warp(Collective kind, unsigned mask, std::uint64_t operand, unsigned source, Where where) {
  return executor().sync_warp(kind, mask, operand, source, where);
}

void note_wait_for_previous_kernel() { executor().thread().waited_for_previous_kernel = true; }

unsigned current_lane() { return executor().lane(); }

void* dynamic_shared_memory() { return executor().dynamic_shared(); }

}  // namespace onerec::simt
