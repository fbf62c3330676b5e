// The arrays through which a plan talks to the host, and the beams' state between its steps.
#pragma once

#include <vector>

#include "core/arena.h"
#include "engine/batch.h"
#include "ops/beam_search.h"

namespace onerec {

// The bucket of sizes that a plan is made for.
struct PlanShape {
  PassShape pass;
  std::int64_t results = 0;   // rows behind the last level
  std::int64_t excluded = 0;  // positions over the batch; 0: no request excludes anything
  bool forced = false;

  auto operator<=>(const PlanShape&) const = default;
};

// The smallest bucket that holds `batch`.
PlanShape plan_shape(const Batch& batch, int levels);

// The blocks that a plan is laid out in. Measuring arenas give addresses that are never followed.
struct PlanMemory {
  Arena device;
  Arena input;   // pinned host memory, copied in before every search
  Arena output;  // pinned host memory, copied out behind it
};

class PlanIo {
 public:
  PlanIo(const PlanShape& shape, const InputSchema& schema, PlanMemory& memory, MemoryLedger& ledger);

  // Issues the one copy in, which also sets the beams and the status to their start.
  void issue_start(Stream& stream) const;
  // Issues the one copy out.
  void issue_finish(Stream& stream) const;

  PassInputs pass_inputs() const;
  const BeamState& state(int level) const { return states_[static_cast<std::size_t>(level)]; }
  const std::int32_t* row_offsets(int step) const { return row_offsets_[static_cast<std::size_t>(step)].device; }
  const std::uint8_t* constrained() const { return constrained_.device; }
  const std::int32_t* excluded() const { return excluded_.device; }
  const std::int32_t* excluded_offsets() const { return excluded_offsets_.device; }
  const std::int32_t* forced() const { return forced_.device; }
  std::int32_t* status() const { return status_.device; }
  // Whether the last copy out says that the search is to be repeated: PassInputs::overflowed.
  bool overflowed() const { return status_.host[shape_.pass.batch] != 0; }

  // Host side: writes a batch of this shape for the next copy in, and reads what the last copy out brought.
  void load(const Batch& batch) const;
  void read(const Batch& batch, BatchResult& result) const;

 private:
  // An array that lies at the same place of two equal blocks, one on the host and one on the device.
  template <class T>
  struct Mirrored {
    T* host = nullptr;
    T* device = nullptr;
    std::int64_t count = 0;
  };
  struct Pathway {
    Mirrored<std::int32_t> count, codes, positions, rows, categorical;
    Mirrored<float> dense;
  };
  struct Block {
    void* host = nullptr;
    void* device = nullptr;
    std::size_t bytes = 0;
  };

  const PlanShape& shape_;
  const InputSchema& schema_;
  std::vector<Pathway> pathways_;
  Mirrored<std::int32_t> context_offsets_;
  std::vector<Mirrored<std::int32_t>> row_offsets_;  // [levels + 1]: of each step, then of the results
  Mirrored<std::uint8_t> constrained_;
  Mirrored<std::int32_t> excluded_, excluded_offsets_, forced_;
  Mirrored<float> start_scores_;
  Mirrored<std::int32_t> start_states_, start_status_;
  Block input_;

  std::vector<BeamState> states_;  // [levels + 1]: before each level, then the results
  Mirrored<float> scores_;
  Mirrored<std::int32_t> leaves_, codes_;
  Mirrored<std::int32_t> status_;  // [batch], behind them whether anything overflowed; on the device start_status_
  Block output_;
};

}  // namespace onerec
