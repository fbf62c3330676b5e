#include "bindings/op_runner.h"

#include <utility>

#include "backends/registry.h"
#include "bindings/arrays.h"

namespace onerec::bindings {
namespace {

WeightFormat parse_format(const std::string& name) {
  if (name == "dense") return WeightFormat::kDense;
  if (name == "fp8_channel") return WeightFormat::kFp8Channel;
  require(name == "fp8_block", "[op_runner] got format '", name, "', want 'dense', 'fp8_channel' or 'fp8_block'.");
  return WeightFormat::kFp8Block;
}

DType parse_weight_dtype(const std::string& name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kE4M3}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw ArgumentError(
      concat("[op_runner] got a weight of ", name, ", want 'float32', 'bfloat16' or 'float8_e4m3'. Convert it."));
}

}  // namespace

OpRunner::OpRunner(const std::string& device, int threads) : device_(std::make_shared<OpDevice>()) {
  device_->backend = make_backend(device, threads);
  device_->stream = device_->backend->device().make_stream();
}

void OpRunner::synchronize() {
  const py::gil_scoped_release release;
  device_->stream->synchronize();
}

void OpRunner::poison(int value) {
  if (workspace_ != nullptr) device_->stream->fill(workspace_->data(), value, workspace_->bytes());
}

std::shared_ptr<OpWeight> OpRunner::pack_linear(const py::array& values, const std::string& dtype,
                                                const std::string& format, std::int64_t experts, std::int64_t outputs,
                                                std::int64_t inputs, const py::object& scales) {
  require(experts >= 1 && outputs >= 1 && inputs >= 1, "[op_runner] got a weight of ", experts, " x ", outputs, " x ",
          inputs, ", want at least 1 each.");
  LinearWeightSource source{.name = "weight",
                            .experts = experts,
                            .outputs = outputs,
                            .inputs = inputs,
                            .format = parse_format(format),
                            .dtype = parse_weight_dtype(dtype)};
  const bool dense = source.format == WeightFormat::kDense;
  require(dense != (source.dtype == DType::kE4M3), "[op_runner] got a weight of ", dtype, " as ", format,
          ", want values for 'dense' and codes for the others.");
  const auto bytes = checked_array<std::uint8_t>(
      "values", values, {experts * outputs * inputs * static_cast<std::int64_t>(size_of(source.dtype))});
  source.values = bytes.data();
  py::array_t<float> held;
  if (!dense) {
    held = source.format == WeightFormat::kFp8Channel
               ? checked_array<float>("scales", scales, {experts, outputs})
               : checked_array<float>("scales", scales, {experts, scale_blocks(outputs), scale_blocks(inputs)});
    source.scales = held.data();
  }
  const py::gil_scoped_release release;
  const std::string reason = device_->backend->why_not(source);
  require(reason.empty(), "[op_runner] ", reason);
  return std::make_shared<OpWeight>(OpWeight{device_, device_->backend->pack_linear(source)});
}

std::shared_ptr<OpTrie> OpRunner::make_trie(const py::array& semantic_ids,
                                            const std::vector<std::int64_t>& codebook_sizes) {
  const auto levels = static_cast<std::int64_t>(codebook_sizes.size());
  require(levels >= 1 && levels <= kMaxLevels, "[op_runner] got ", levels, " codebooks, want 1 to ", kMaxLevels, ".");
  const auto codes = checked_array<std::int32_t>("semantic_ids", semantic_ids, {-1, levels});
  const std::int32_t* data = codes.data();
  const std::int64_t items = codes.shape(0);
  const py::gil_scoped_release release;
  return std::make_shared<OpTrie>(
      OpTrie{device_, std::make_unique<ItemTrie>(data, items, codebook_sizes, device_->backend->device())});
}

std::shared_ptr<OpRecording> OpRunner::record(const py::function& body) {
  if (mode_ != Mode::kRun) throw StateError("[op_runner] it is recording already. End that recording first.");
  Stream& stream = *device_->stream;
  bool capturing = false;
  try {
    mode_ = Mode::kMeasure;
    body();
    reserve(needed_);
    mode_ = Mode::kRecord;
    stream.begin_recording();
    capturing = true;
    body();
    capturing = false;
    auto recording = stream.end_recording();
    mode_ = Mode::kRun;
    return std::make_shared<OpRecording>(
        OpRecording{device_, workspace_, std::exchange(handles_, {}), std::move(recording)});
  } catch (...) {
    mode_ = Mode::kRun;
    handles_.clear();
    try {
      if (capturing) stream.end_recording();
    } catch (const StateError&) {
      // What `body` threw says more.
    }
    throw;
  }
}

void OpRunner::replay(const OpRecording& recording) {
  require(recording.device == device_, "[op_runner] got another runner's recording, want one of its own.");
  require(mode_ == Mode::kRun, "[op_runner] got a replay while recording, want ops. Replay afterwards.");
  const py::gil_scoped_release release;
  recording.recording->replay(*device_->stream);
}

OpContext OpRunner::context(bool measuring) const {
  OpContext context{.backend = *device_->backend, .stream = *device_->stream, .measuring = measuring};
  if (workspace_ != nullptr) context.workspace = {workspace_->data(), workspace_->bytes()};
  return context;
}

void OpRunner::reserve(std::size_t bytes) {
  if (bytes == 0 || (workspace_ != nullptr && workspace_->bytes() >= bytes)) return;
  // Recordings made before hold on to the smaller one.
  workspace_ = device_->backend->device().allocate(bytes);
}

}  // namespace onerec::bindings
