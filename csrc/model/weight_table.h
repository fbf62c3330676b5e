// The weights of a model on a device: what a checkpoint's tensors are turned into.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "ops/backend.h"

namespace onerec {

enum class TensorDType : std::uint8_t { kF32, kF16, kBF16, kE4M3 };

// A tensor of a checkpoint as the model wants it. A tensor of one dimension has rows = 0.
struct TensorSpec {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  enum class Kind : std::uint8_t { kVector, kTable, kLinear, kLinearFp8Channel, kLinearFp8Block } kind = Kind::kVector;
};

// A checkpoint tensor in host memory, contiguous. `scales` belong to kE4M3 alone.
struct TensorSource {
  TensorDType dtype = TensorDType::kF32;
  const void* values = nullptr;
  const float* scales = nullptr;
};

// A device array; `data` stays null until its tensors have been set.
struct DeviceArray {
  std::unique_ptr<Buffer> buffer;
  const void* data() const { return buffer ? buffer->data() : nullptr; }
  const float* floats() const { return static_cast<const float*>(data()); }
  std::vector<float> values;  // of a vector of FP32, in host memory too
  float magnitude = 0.0f;     // the largest of them
};

// Filled in three strokes: the model declares what it needs (add_*), the loader sets every tensor in the order of
// specs(), and finish() checks that none is missing. References that add_* returns stay valid and are filled while
// loading.
class WeightTable {
 public:
  explicit WeightTable(Backend& backend);
  ~WeightTable();

  // One part of a fused linear: rows [row, row + rows) of expert `expert`, columns [0, cols), come from tensor `name`.
  struct Part {
    std::string name;
    std::int64_t expert = 0;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
  };

  // A vector of FP32 made of tensors laid end to end, zero-padded to `length`.
  const DeviceArray& add_vector(const std::vector<std::string>& names, const std::vector<std::int64_t>& lengths,
                                std::int64_t length);
  // A table [rows, cols] of FP32 or BF16; a one-dimensional tensor where `vector` says so.
  enum class TableShape : std::uint8_t { kMatrix, kVector };
  const DeviceArray& add_table(const std::string& name, std::int64_t rows, std::int64_t cols, DType dtype,
                               TableShape shape = TableShape::kMatrix);
  // A linear of experts x [outputs, inputs]; what no part covers is zero. `dtype` is that of dense values.
  // `gated_norm`: that of its input, for a linear whose outputs are gates and ups, without a bias:
  // LinearWeight::static_scale.
  const std::unique_ptr<LinearWeight>& add_linear(const std::string& name, std::int64_t experts, std::int64_t outputs,
                                                  std::int64_t inputs, WeightFormat format, DType dtype,
                                                  const std::vector<Part>& parts,
                                                  const DeviceArray* gated_norm = nullptr);

  const std::vector<TensorSpec>& specs() const { return specs_; }
  // Converts, quantises where the format wants it, and packs a linear as soon as it is complete. Throws ArgumentError
  // for an unknown or repeated name or a dtype that does not fit.
  void set(const std::string& name, const TensorSource& source);
  void finish() const;
  // Device memory held.
  std::size_t bytes() const;

 private:
  struct Vector;
  struct Table;
  struct Linear;
  struct Entry {
    Vector* vector = nullptr;
    Table* table = nullptr;
    Linear* linear = nullptr;
    std::size_t part = 0;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    bool set = false;
  };

  void add_spec(TensorSpec spec, Entry entry);
  void upload(DeviceArray& array, const void* host, std::size_t bytes);
  void set_vector(Entry& entry, const TensorSource& source);
  void set_table(Entry& entry, const TensorSource& source);
  void set_linear(Entry& entry, const TensorSource& source);
  void pack(Linear& linear);

  Backend& backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Vector>> vectors_;
  std::vector<std::unique_ptr<Table>> tables_;
  std::vector<std::unique_ptr<Linear>> linears_;
  std::vector<TensorSpec> specs_;
  std::unordered_map<std::string, Entry> entries_;
};

}  // namespace onerec
