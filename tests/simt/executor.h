// Runs the threads of a CUDA kernel on the host: the blocks one after another, the threads of a block as fibres that
// change at barriers and warp collectives.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>

namespace onerec::simt {

using Where = std::source_location;

inline constexpr unsigned kWarp = 32;

struct KernelLaunch {
  const char* name;
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
};

// Calls `thread` as every thread of the grid. Throws InternalError when threads wait for each other for ever, a warp
// collective lacks a lane, a thread reads a lane that does not take part, dynamic shared memory is overrun, or a thread
// returns without having waited for the previous kernel. Shared memory is poisoned with 0xff before every block. Every
// second launch goes through blocks and threads backwards: where a barrier is missing, two runs differ.
void run_kernel(const KernelLaunch& launch, const std::function<void()>& thread);

// --- for cuda_names.h: called by the thread that runs ---

enum class Collective : std::uint8_t { kSync, kShuffle, kBallot, kMatch };

void sync_block(Where where);

// Waits for the lanes of `mask`. The result: kShuffle, the operand of lane `source`; kBallot, a bit for every lane
// whose operand is not 0; kMatch, a bit for every lane with an equal operand.
std::uint64_t sync_warp(Collective kind, unsigned mask, std::uint64_t operand, unsigned source, Where where);

void note_wait_for_previous_kernel();
unsigned current_lane();
void* dynamic_shared_memory();

}  // namespace onerec::simt
