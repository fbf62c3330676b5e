#include "ops/embed_step.h"

#include <cstring>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/parallel.h"
#include "backends/cpu/rows.h"

namespace onerec::cpu {

void CpuBackend::embed_step(Stream& stream, const EmbedStepParams& params) {
  submit(stream, [p = params] {
    const std::size_t bytes = row_bytes(p.h);
    for_rows(live(p.rows), p.h.cols, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t code = p.codes == nullptr ? 0 : p.codes[r * p.code_stride];
        const std::byte* embedding = static_cast<const std::byte*>(p.table) + static_cast<std::size_t>(code) * bytes;
        if (p.position == nullptr) {
          std::memcpy(row_at(p.h, r), embedding, bytes);
        } else {
          add_rows(p.h.dtype, embedding, p.position, p.h.cols, row_at(p.h, r));
        }
      }
    });
  });
}

}  // namespace onerec::cpu
