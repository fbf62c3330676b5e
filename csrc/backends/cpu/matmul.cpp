#include "backends/cpu/matmul.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "backends/cpu/convert.h"
#include "backends/cpu/epilogue.h"
#include "backends/cpu/parallel.h"
#include "core/arena.h"
#include "core/error.h"

namespace onerec::cpu {
namespace {

constexpr std::int64_t kMaxTaskRows = 256;
constexpr std::int64_t kMinTaskRows = 32;
// Tasks per thread that even out differences of speed.
constexpr std::int64_t kTasksPerThread = 4;
// Multiply-adds below which another thread costs more than it saves: a few microseconds' worth.
constexpr std::int64_t kProductsPerThread = 500'000;

// Rows of a task, a multiple of kMinTaskRows: enough tasks for every thread, or rather few large ones.
std::int64_t rows_per_task(std::int64_t rows, std::int64_t panels, int threads) {
  if (threads == 1) return kMaxTaskRows;
  const std::int64_t even = rows * panels / (kTasksPerThread * threads) / kMinTaskRows * kMinTaskRows;
  return std::clamp(even, kMinTaskRows, kMaxTaskRows);
}

}  // namespace

// Numbers the tasks without listing them: panels outside, row chunks inside, so that a panel stays in cache for its
// chunks.
class Matmul::Tasks {
 public:
  Tasks(std::span<const std::int32_t> offsets, std::int64_t panels, std::int64_t chunk)
      : offsets_(offsets), panels_(panels), chunk_(chunk) {}

  // Calls f with the tasks whose numbers `next` hands out, until there are none.
  template <class F>
  void take(std::atomic<std::int64_t>& next, F&& f) const {
    std::int64_t number = next.fetch_add(1, std::memory_order_relaxed);
    std::int64_t first = 0;  // of this expert
    for (std::size_t expert = 0; expert + 1 < offsets_.size(); ++expert) {
      const std::int64_t rows = offsets_[expert + 1] - offsets_[expert];
      const std::int64_t chunks = (rows + chunk_ - 1) / chunk_;
      for (; number < first + chunks * panels_; number = next.fetch_add(1, std::memory_order_relaxed)) {
        const std::int64_t begin = (number - first) % chunks * chunk_;
        f(Task{static_cast<std::int64_t>(expert), (number - first) / chunks, offsets_[expert] + begin,
               std::min(chunk_, rows - begin)});
      }
      first += chunks * panels_;
    }
  }

 private:
  std::span<const std::int32_t> offsets_;
  std::int64_t panels_;
  std::int64_t chunk_;
};

Matmul::Matmul(const LinearParams& params, int threads)
    : params_(params), weight_(static_cast<const CpuLinearWeight*>(params.weight)), threads_(threads) {
  const PackedMatrix& matrix = *weight_->matrix;
  const std::int64_t capacity = params.rows.capacity;
  const std::int64_t task_rows = std::min(capacity, kMaxTaskRows);
  gemm_ = make_gemm(matrix, task_rows, threads);

  expand_input_ = params.x.values.dtype != matrix.dtype || params.x.values.stride != matrix.k;
  sums_are_output_ = params.x.scale_kind != ScaleKind::kPerRow && params.bias == nullptr &&
                     params.activation == Activation::kNone && params.residual.data == nullptr &&
                     params.y.dtype == DType::kF32 && matrix.panels == 1 && params.y.stride == matrix.n;

  tile_bytes_ =
      sums_are_output_ ? 0 : align_up(static_cast<std::size_t>(task_rows * matrix.panel_width) * sizeof(float));
  own_bytes_ = tile_bytes_ + align_up(gemm_->scratch_bytes());
  expanded_bytes_ = expand_input_ ? align_up(static_cast<std::size_t>(capacity * matrix.k) * size_of(matrix.dtype)) : 0;
  workspace_bytes_ = expanded_bytes_ + own_bytes_ * static_cast<std::size_t>(threads);
}

void Matmul::expand_rows(std::int64_t begin, std::int64_t end, void* expanded) const {
  const Matrix& x = params_.x.values;
  const std::int64_t cols = x.cols;
  for (std::int64_t r = begin; r < end; ++r) {
    if (x.dtype == weight_->matrix->dtype) {
      const auto row_bytes = static_cast<std::size_t>(cols) * size_of(x.dtype);
      std::memcpy(static_cast<std::byte*>(expanded) + static_cast<std::size_t>(r) * row_bytes,
                  x.row<std::byte>(0) + static_cast<std::size_t>(r * x.stride) * size_of(x.dtype), row_bytes);
      continue;
    }
    if (x.dtype == DType::kBF16) {
      bf16_to_f32(x.row<const BFloat16>(r), static_cast<float*>(expanded) + r * cols, cols);
      continue;
    }
    const auto* codes = x.row<const std::uint8_t>(r);
    if (weight_->matrix->dtype == DType::kBF16) {
      e4m3_to_bf16(codes, static_cast<BFloat16*>(expanded) + r * cols, cols);
      continue;
    }
    float* to = static_cast<float*>(expanded) + r * cols;
    if (params_.x.scale_kind == ScaleKind::kPerRow) {
      e4m3_to_f32(codes, to, cols);
      continue;
    }
    for (std::int64_t block = 0; block < scale_blocks(cols); ++block) {
      const std::int64_t first = block * kScaleBlock;
      e4m3_to_f32(codes + first, params_.x.scales[block * params_.x.scale_stride + r], to + first,
                  std::min(kScaleBlock, cols - first));
    }
  }
}

bool Matmul::do_task(const Task& task, std::byte* expanded, std::byte* own) const {
  const PackedMatrix& matrix = *weight_->matrix;
  const std::int64_t column = matrix.panel_begin(task.panel);
  const std::int64_t width = matrix.width_of(task.panel);
  const Matrix& x = params_.x.values;
  const std::byte* const a =
      expand_input_
          ? expanded + static_cast<std::size_t>(task.begin * x.cols) * size_of(matrix.dtype)
          : static_cast<const std::byte*>(x.data) + static_cast<std::size_t>(task.begin * x.stride) * size_of(x.dtype);
  Matrix y = params_.y.columns(column, width);
  y.data = y.row<std::byte>(0) + static_cast<std::size_t>(task.begin * y.stride) * size_of(y.dtype);
  y.rows = task.rows;
  auto* const sums = static_cast<float*>(sums_are_output_ ? y.data : own);
  if (!gemm_->run(task.expert, task.panel, task.rows, a, sums, own + tile_bytes_)) return false;
  if (sums_are_output_) return true;

  Epilogue epilogue{.sums = sums,
                    .bias = params_.bias == nullptr ? nullptr : params_.bias + column,
                    .leaky_relu = params_.activation == Activation::kLeakyRelu,
                    .negative_slope = params_.negative_slope,
                    .residual = {},
                    .y = y};
  if (params_.x.scale_kind == ScaleKind::kPerRow) {
    epilogue.row_scales = params_.x.scales + task.begin;
    epilogue.column_scales = weight_->scales.data() + task.expert * matrix.n + column;
  }
  if (params_.residual.data != nullptr) {
    epilogue.residual = params_.residual.columns(column, width);
    epilogue.residual.data = epilogue.residual.row<std::byte>(0) +
                             static_cast<std::size_t>(task.begin * epilogue.residual.stride) * size_of(y.dtype);
  }
  apply_epilogue(epilogue);
  return true;
}

void Matmul::run(std::span<const std::int32_t> offsets, void* workspace) const {
  const PackedMatrix& matrix = *weight_->matrix;
  const std::int64_t rows = offsets.back();
  ensure(rows <= params_.rows.capacity, "'", weight_->name, "' got ", rows, " rows for a capacity of ",
         params_.rows.capacity);
  if (rows <= 0) return;
  const int threads = std::min(threads_, threads_for(rows * matrix.n * matrix.k, kProductsPerThread));
  const Tasks tasks(offsets, matrix.panels, rows_per_task(rows, matrix.panels, threads));
  auto* const expanded = static_cast<std::byte*>(workspace);
  std::byte* const own = expanded + expanded_bytes_;
  std::atomic<std::int64_t> next = 0;
  std::atomic<bool> failed = false;
  auto work = [&](int rank) {
    tasks.take(next, [&](const Task& task) {
      if (!do_task(task, expanded, own + static_cast<std::size_t>(rank) * own_bytes_)) failed = true;
    });
  };
  if (expand_input_) {
    for_rows(rows, weight_->inputs, [&](std::int64_t begin, std::int64_t end) { expand_rows(begin, end, expanded); });
  }
  current_pool().run(threads, work);
  ensure(!failed, "the matrix library failed in '", weight_->name, "'");
}

}  // namespace onerec::cpu
