#include "ops/embed_context.h"

#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"
#include "core/bfloat16.h"

namespace onerec::cpu {
namespace {

using Kind = ContextField::Kind;

void copy_embedding(const EmbeddingTable& table, std::int64_t id, std::size_t bytes, std::byte* out) {
  std::memcpy(out, static_cast<const std::byte*>(table.data) + static_cast<std::size_t>(id) * bytes, bytes);
}

void copy_dense(const float* values, std::int64_t count, DType dtype, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, values, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  auto* rounded = reinterpret_cast<BFloat16*>(out);
  for (std::int64_t i = 0; i < count; ++i) rounded[i] = to_bfloat16(values[i]);
}

void embed_token(const EmbedContextParams& p, std::int64_t token) {
  std::byte* out = row_at(p.out, token);
  const std::byte* end = out + row_bytes(p.out);
  for (const ContextField& field : p.fields) {
    const std::size_t bytes = static_cast<std::size_t>(field.width) * size_of(p.out.dtype);
    switch (field.kind) {
      case Kind::kSemanticId:
        copy_embedding(field.table, p.codes[token * p.levels + field.index], bytes, out);
        break;
      case Kind::kCategorical:
        copy_embedding(field.table, p.categorical[token * p.num_categorical + field.index], bytes, out);
        break;
      case Kind::kDense:
        copy_dense(p.dense + token * p.num_dense + field.index, field.width, p.out.dtype, out);
        break;
    }
    out += bytes;
  }
  std::memset(out, 0, static_cast<std::size_t>(end - out));
}

}  // namespace

void CpuBackend::embed_context(Stream& stream, const EmbedContextParams& params) {
  submit(stream, [p = params] {
    for_rows(live(p.tokens), p.out.cols, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t token = begin; token < end; ++token) embed_token(p, token);
    });
  });
}

void CpuBackend::scatter_context(Stream& stream, const ScatterContextParams& params) {
  submit(stream, [p = params] {
    const std::size_t bytes = row_bytes(p.x);
    const auto* table = static_cast<const std::byte*>(p.position_table.data);
    for_rows(live(p.tokens), p.x.cols, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t token = begin; token < end; ++token) {
        std::byte* out = row_at(p.out, p.rows[token]);
        if (table == nullptr) {
          std::memcpy(out, row_at(p.x, token), bytes);
        } else {
          const std::byte* position = table + static_cast<std::size_t>(p.positions[token]) * bytes;
          add_rows(p.x.dtype, row_at(p.x, token), position, p.x.cols, out);
        }
      }
    });
  });
}

}  // namespace onerec::cpu
