#include "backends/cuda/gemm/gemm_select.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "backends/cuda/gemm/measured_gemms.h"

namespace onerec::cuda {
namespace {

// Rates of a multiprocessor of an H100 or H200 from the datasheet. One number serves FP8 and BF16: an instruction of 64
// rows x n outputs x 32 bytes of K takes as long in both.
constexpr double kClocksPerMicrosecond = 1755.0;
constexpr double kSharedBytesPerClock = 128.0;
constexpr double kLoadBytesPerClock = 64.0;
// Fitted to profiling/results/gemm_tuning.json, so that the kernel that is expected to win takes little more time than
// the one that does.
constexpr double kTensorClocksPerOutput = 0.6;  // of that instruction, in a full pipeline
constexpr double kL2BytesPerMicrosecond = 12.5e6;
constexpr double kMemoryBytesPerMicrosecond = 4.4e6;
constexpr double kTileClocks = 1200.0;     // of a tile, besides its steps along K
constexpr double kStoredPerClock = 12.0;   // elements of y
constexpr double kExchangeClocks = 900.0;  // of sums between the blocks of a tile, besides their bytes
constexpr double kSentBytesPerClock = 16.0;
constexpr double kPlainStartClocks = 1600.0;
constexpr double kPlainPerMicrosecond = 8.5e6;  // instructions x lanes

double memory_microseconds(const GemmShape& s) {
  const double in = input_bytes(s.types);
  const auto bytes = static_cast<double>(s.outputs) * static_cast<double>(s.inputs) * in +
                     static_cast<double>(s.rows) * static_cast<double>(s.inputs) * in +
                     static_cast<double>(s.rows) * static_cast<double>(s.outputs) * output_bytes(s.types);
  return bytes / kMemoryBytesPerMicrosecond;
}

double plain_microseconds(const GemmShape& s) {
  constexpr std::int64_t kChunk = 8;  // rows that share a read of W
  const std::int64_t chunks = (s.rows + kChunk - 1) / kChunk;
  const double convert = s.types == GemmTypes::kFp8ToBf16 ? 1.5 : 1.0;  // instructions per value
  // Per weight: its conversion, and for each row a product and half a conversion of x (two outputs share it).
  const double per_weight = static_cast<double>(chunks) * convert + static_cast<double>(s.rows) * (1.0 + convert / 2.0);
  const double compute = static_cast<double>(s.outputs) * static_cast<double>(s.inputs) * per_weight /
                         (kPlainPerMicrosecond * s.multiprocessors / 132.0);
  return std::max(memory_microseconds(s), compute) + kPlainStartClocks / kClocksPerMicrosecond;
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Clusters of `blocks` that have room at a time. Multiprocessors come in groups of 14, 16 or 18, within which a cluster
// stays: of 132, some are left over by clusters of more than two.
std::int64_t resident_clusters(int multiprocessors, int blocks) {
  const int used = blocks > 2 ? multiprocessors - multiprocessors / 16 : multiprocessors;
  return std::max(1, used / blocks);
}

// Of a kernel besides its tiles: barriers, descriptors, the first load. Fitted like the others.
double start_clocks(GemmSchedule schedule) {
  switch (schedule) {
    case GemmSchedule::kPingpong:
      return 3600.0;
    case GemmSchedule::kCooperative:
      return 2300.0;
    case GemmSchedule::kDirect:
      return 1800.0;
    case GemmSchedule::kSplit:
      break;
  }
  return 1100.0;
}

// Waves of tiles x the clocks of a tile or of its largest part, but no less than what memory and L2 take.
double tensor_microseconds(const GemmShape& s, const GemmConfig& c) {
  const std::int64_t steps = ceil_div(s.inputs * input_bytes(s.types), c.tile_bytes);
  const auto k_bytes = static_cast<double>(ceil_div(steps, c.depth_parts) * c.tile_bytes);
  const std::int64_t clusters =
      ceil_div(s.rows, std::int64_t{c.tile_rows} * c.cluster) * ceil_div(s.outputs, c.tile_outputs);
  const std::int64_t resident = resident_clusters(s.multiprocessors, c.cluster * c.depth_parts);
  const auto waves = static_cast<double>(ceil_div(clusters, resident));

  const double rows = c.tile_rows;
  const double outputs = c.tile_outputs;
  // Per 32 bytes of K: products of 64 rows at a time, which read both operands from shared memory, to where the copy
  // engine writes them.
  const double products = rows / 64.0;
  const double shared = (products * (64.0 + outputs) + rows + outputs) * 32.0 / kSharedBytesPerClock;
  const double multiply = k_bytes / 32.0 * std::max(products * outputs * kTensorClocksPerOutput, shared);
  const double tile_bytes = (rows + outputs / c.cluster) * k_bytes;
  const double load = tile_bytes / kLoadBytesPerClock;
  const double parts = c.depth_parts;
  const double store = rows * outputs / parts / kStoredPerClock;
  const double exchange =
      c.depth_parts == 1 ? 0.0 : kExchangeClocks + rows * outputs * 4.0 * (parts - 1.0) / parts / kSentBytesPerClock;
  // All but the last tile's stores are hidden; the cooperative schedule hides none.
  const bool hidden = c.schedule != GemmSchedule::kCooperative;
  const double clocks =
      waves * (std::max(multiply, load) + kTileClocks + exchange + (hidden ? 0.0 : store)) + (hidden ? store : 0.0);
  const double l2 = static_cast<double>(clusters * c.cluster) * parts * tile_bytes / kL2BytesPerMicrosecond;
  return std::max({clocks / kClocksPerMicrosecond, memory_microseconds(s), l2}) +
         start_clocks(c.schedule) / kClocksPerMicrosecond;
}

}  // namespace

double gemm_microseconds(const GemmShape& shape, int config) {
  return config == kPlainGemm ? plain_microseconds(shape) : tensor_microseconds(shape, kGemmConfigs[config]);
}

int select_gemm(const GemmShape& shape) {
  for (const MeasuredGemm& measured : kMeasuredGemms) {
    if (measured.types == shape.types && measured.outputs == shape.outputs && measured.inputs == shape.inputs &&
        measured.min_rows <= shape.rows && shape.rows <= measured.max_rows) {
      if (shape.ours && (measured.config == kPlainGemm || !is_ours(kGemmConfigs[measured.config].schedule))) break;
      return measured.config;
    }
  }
  return model_gemm(shape);
}

int model_gemm(const GemmShape& shape) {
  int best = kPlainGemm;
  double best_time = shape.ours ? std::numeric_limits<double>::infinity() : gemm_microseconds(shape, kPlainGemm);
  for (int config = 0; config < kGemmConfigCount; ++config) {
    if (kGemmConfigs[config].types != shape.types || !takes_outputs(kGemmConfigs[config], shape.outputs)) continue;
    if (shape.ours && !is_ours(kGemmConfigs[config].schedule)) continue;
    const double time = gemm_microseconds(shape, config);
    if (time < best_time) {
      best = config;
      best_time = time;
    }
  }
  return best;
}

int select_swiglu_gemm(const GemmShape& shape) {
  const auto faster = [&](const GemmConfig& a, const GemmConfig& b) {
    return tensor_microseconds(shape, a) < tensor_microseconds(shape, b);
  };
  return static_cast<int>(std::min_element(std::begin(kSwigluConfigs), std::end(kSwigluConfigs), faster) -
                          std::begin(kSwigluConfigs));
}

}  // namespace onerec::cuda
