#include "executor.h"

#include <algorithm>
#include <array>
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
  State state = State::kReady;
  bool waited_for_previous_kernel = false;
  Where where = {};
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
  void release(unsigned first, unsigned mask);
  // From within a thread: stops the launch with this message.
  void fail(const std::string& message) {
    failure_ = message;
    fibres_[current_]->pause();
  }
  [[noreturn]] void stop(const std::string& message);
  std::string describe_all() const;

  std::vector<std::unique_ptr<Fibre>> fibres_;  // made when first needed, kept for later blocks
  std::array<Thread, kMaxThreads> threads_;
  unsigned count_ = 0;  // threads of a block
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
      if (!thread().waited_for_previous_kernel) fail("a thread returned without wait_for_previous_kernel()");
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
  for (unsigned i = 0; i < count_; ++i) threads_[i] = Thread{};
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
  const dim3& block = launch_->block;
  threadIdx = uint3{index % block.x, index / block.x % block.y, index / block.x / block.y};
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
  if ((mask >> lane() & 1u) == 0) fail(concat("a thread is not in the mask that it passes (", line_of(where), ")"));
  if (kind == Collective::kShuffle && (mask >> source & 1u) == 0) {
    fail(concat("a thread reads lane ", source, ", which does not take part (", line_of(where), ")"));
  }
  const unsigned first = current_ - lane();
  bool complete = true;
  for (unsigned i = 0; i < kWarp && complete; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    if (first + i >= count_) fail(concat("a mask names lanes that the block has not (", line_of(where), ")"));
    const Thread& other = threads_[first + i];
    complete = other.state == State::kInCollective && other.mask == mask && other.kind == kind;
  }
  if (complete) {
    release(first, mask);
  } else {
    fibres_[current_]->pause();
  }
  return self.result;
}

// All lanes of `mask` have arrived: works their results out and lets them go on.
void Executor::release(unsigned first, unsigned mask) {
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    Thread& one = threads_[first + i];
    one.result = 0;
    if (one.kind == Collective::kShuffle) one.result = threads_[first + one.source].operand;
    if (one.kind == Collective::kSync || one.kind == Collective::kShuffle) continue;
    for (unsigned j = 0; j < kWarp; ++j) {
      if ((mask >> j & 1u) == 0) continue;
      const std::uint64_t other = threads_[first + j].operand;
      const bool bit = one.kind == Collective::kBallot ? other != 0 : other == one.operand;
      one.result |= std::uint64_t{bit} << j;
    }
  }
  for (unsigned i = 0; i < kWarp; ++i) {
    if ((mask >> i & 1u) != 0) threads_[first + i].state = State::kReady;
  }
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
