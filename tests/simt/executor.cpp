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
constexpr std::uint64_t kMaxBlocksTogether = 16;  // each thread has a stack

enum class State : std::uint8_t { kReady, kAtBarrier, kInCollective, kPolling, kReturned };

struct Thread {
  uint3 index = {};
  State state = State::kReady;
  bool waited_for_previous_kernel = false;
  Where where = {};  // of its last barrier, collective or poll
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
    case State::kPolling:
      return concat("polls (", line_of(thread.where), ")");
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

// The threads of a block that has begun. Those of a cooperative launch have their shared arrays aside while others run.
struct Block {
  std::uint64_t index = 0;
  std::array<Thread, kMaxThreads> threads;
  std::array<unsigned, kMaxThreads / kWarp> arrived{};  // lanes of each warp that are in a collective
  unsigned returned = 0;
  unsigned first_fibre = 0;
  std::vector<std::byte> static_shared;
  std::unique_ptr<DynamicShared> dynamic_shared;
};

class Executor {
 public:
  void run(const KernelLaunch& launch, const std::function<void()>& body);

  void sync_block(Where where) {
    thread().where = where;
    wait_as(State::kAtBarrier);
  }

  std::uint64_t sync_warp(Collective kind, unsigned mask, std::uint64_t operand, unsigned source, Where where);

  void poll(Where where) {
    if (!launch_->cooperative) fail("a thread polls in a launch that is not cooperative", where);
    thread().where = where;
    wait_as(State::kPolling);
  }

  Thread& thread() { return block_->threads[current_]; }
  unsigned lane() const { return current_ % kWarp; }
  void* dynamic_shared() { return block_->dynamic_shared->data(); }

 private:
  void make_fibres(std::size_t count);
  Fibre& fibre(unsigned thread) { return *fibres_[block_->first_fibre + thread]; }
  void begin(Block& block, std::uint64_t index);
  void enter(Block& block);
  bool run_block();
  void end_block();
  void run_one_by_one(std::uint64_t blocks, StaticShared& shared);
  void run_together(std::uint64_t blocks, StaticShared& shared);
  bool run_warp(unsigned warp);
  void resume(unsigned index);
  void wait_as(State state) {
    thread().state = state;
    fibre(current_).pause();
  }
  bool all_agree(unsigned warp, unsigned mask, Collective kind) const;
  void release(unsigned warp, unsigned mask, Collective kind);
  // From within a thread: stops the launch with this message.
  [[gnu::cold, gnu::noinline]] void fail(const char* what, const Where& where) {
    failure_ = concat(what, " (", line_of(where), ")");
    fibre(current_).pause();
  }
  [[noreturn]] void stop(const std::string& message);
  std::string describe_all() const;

  std::vector<std::unique_ptr<Fibre>> fibres_;  // made when first needed, kept for later blocks
  std::vector<std::unique_ptr<Block>> blocks_;  // the same; more than one for cooperative launches alone
  Block* block_ = nullptr;                      // the one that runs
  unsigned count_ = 0;                          // threads of a block
  unsigned current_ = 0;
  bool backwards_ = false;
  const KernelLaunch* launch_ = nullptr;
  const std::function<void()>* body_ = nullptr;
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
  launch_ = &launch;
  body_ = &body;
  backwards_ = !backwards_;
  blockDim = launch.block;
  gridDim = launch.grid;
  StaticShared static_shared;
  const std::uint64_t blocks = std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  const std::uint64_t together = launch.cooperative ? blocks : 1;
  ensure(together <= kMaxBlocksTogether, "kernel '", launch.name, "' has ", together, " blocks that run together");
  make_fibres(together * count_);
  while (blocks_.size() < together) blocks_.push_back(std::make_unique<Block>());
  launch.cooperative ? run_together(blocks, static_shared) : run_one_by_one(blocks, static_shared);
}

void Executor::make_fibres(std::size_t count) {
  while (fibres_.size() < count) {
    fibres_.push_back(std::make_unique<Fibre>([this] {
      (*body_)();
      if (!thread().waited_for_previous_kernel)
        fail("a thread returned without wait_for_previous_kernel()", thread().where);
      thread().state = State::kReturned;
    }));
  }
}

void Executor::begin(Block& block, std::uint64_t index) {
  block.index = index;
  const dim3& shape = launch_->block;
  for (unsigned i = 0; i < count_; ++i) {
    block.threads[i] = Thread{.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y}};
  }
  block.arrived = {};
  block.returned = 0;
  block.first_fibre = 0;
  block.dynamic_shared->poison();
}

// From here on its threads run.
void Executor::enter(Block& block) {
  block_ = &block;
  const dim3& grid = launch_->grid;
  blockIdx.x = static_cast<unsigned>(block.index % grid.x);
  blockIdx.y = static_cast<unsigned>(block.index / grid.x % grid.y);
  blockIdx.z = static_cast<unsigned>(block.index / grid.x / grid.y);
}

void Executor::end_block() {
  if (!block_->dynamic_shared->guards_intact()) stop("a thread wrote outside of the dynamic shared memory");
}

void Executor::run_one_by_one(std::uint64_t blocks, StaticShared& shared) {
  Block& block = *blocks_[0];
  block.dynamic_shared = std::make_unique<DynamicShared>(launch_->shared_bytes);
  for (std::uint64_t i = 0; i < blocks; ++i) {
    begin(block, backwards_ ? blocks - 1 - i : i);
    enter(block);
    shared.poison();
    run_block();
    end_block();
  }
}

void Executor::run_together(std::uint64_t blocks, StaticShared& shared) {
  shared.poison();
  for (std::uint64_t i = 0; i < blocks; ++i) {
    Block& block = *blocks_[i];
    block.dynamic_shared = std::make_unique<DynamicShared>(launch_->shared_bytes);
    begin(block, backwards_ ? blocks - 1 - i : i);
    block.first_fibre = static_cast<unsigned>(i) * count_;
    block.static_shared = shared.contents();
  }
  std::uint64_t left = blocks;
  while (left > 0) {
    bool progress = false;
    for (std::uint64_t i = 0; i < blocks; ++i) {
      Block& block = *blocks_[i];
      if (block.returned == count_) continue;
      enter(block);
      shared.set_contents(block.static_shared);
      progress = run_block() || progress;
      block.static_shared = shared.contents();
      if (block.returned < count_) continue;
      end_block();
      --left;
    }
    if (!progress) stop(concat("the blocks wait for each other:", describe_all()));
  }
}

// Runs the block's threads until they have returned, or none can go on before another block has. Returns whether any
// did more than to poll in vain.
bool Executor::run_block() {
  const unsigned warps = (count_ + kWarp - 1) / kWarp;
  std::vector<unsigned> polling;
  for (unsigned i = 0; i < count_; ++i) {
    if (block_->threads[i].state != State::kPolling) continue;
    block_->threads[i].state = State::kReady;
    polling.push_back(i);
  }
  bool any = polling.empty();
  while (block_->returned < count_) {
    bool progress = false;
    for (unsigned i = 0; i < warps; ++i) progress = run_warp(backwards_ ? warps - 1 - i : i) || progress;
    if (!any) {
      any = std::any_of(polling.begin(), polling.end(),
                        [&](unsigned i) { return block_->threads[i].state != State::kPolling; });
    }
    if (progress) continue;
    const auto is_in = [&](State state) { return [state](const Thread& thread) { return thread.state == state; }; };
    const auto begin = block_->threads.begin();
    const auto end = begin + count_;
    if (std::any_of(begin, end, is_in(State::kPolling))) return any;
    if (!std::all_of(begin, end, is_in(State::kAtBarrier))) {
      stop(concat("the threads wait for each other:", describe_all()));
    }
    std::for_each(begin, end, [](Thread& thread) { thread.state = State::kReady; });
  }
  return true;
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
      if (block_->threads[index].state != State::kReady) continue;
      resume(index);
      again = any = true;
    }
  }
  return any;
}

void Executor::resume(unsigned index) {
  current_ = index;
  threadIdx = block_->threads[index].index;
  fibre(index).resume();
  if (!failure_.empty()) stop(failure_);
  if (block_->threads[index].state == State::kReturned) ++block_->returned;
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
  block_->arrived[warp] |= 1u << lane();
  if ((block_->arrived[warp] & mask) == mask && all_agree(warp, mask, kind)) {
    release(warp, mask, kind);
  } else {
    fibre(current_).pause();
  }
  return self.result;
}

// The lanes of `mask` wait for one another, and not some of them for others.
bool Executor::all_agree(unsigned warp, unsigned mask, Collective kind) const {
  const Thread* const lanes = &block_->threads[warp * kWarp];
  for (unsigned left = mask; left != 0; left &= left - 1) {
    const Thread& other = lanes[std::countr_zero(left)];
    if (other.mask != mask || other.kind != kind) return false;
  }
  return true;
}

// All lanes of `mask` have arrived: works their results out and lets them go on.
void Executor::release(unsigned warp, unsigned mask, Collective kind) {
  Thread* const lanes = &block_->threads[warp * kWarp];
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
  block_->arrived[warp] &= ~mask;
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
    while (end < count_ && describe(block_->threads[end]) == describe(block_->threads[i])) ++end;
    text += concat("\n  ", end - i == 1 ? concat("thread ", i) : concat("threads ", i, " to ", end - 1), ": ",
                   describe(block_->threads[i]));
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

void poll(Where where) { executor().poll(where); }

unsigned current_lane() { return executor().lane(); }

void* dynamic_shared_memory() { return executor().dynamic_shared(); }

}  // namespace onerec::simt
