#include "ops/prepared_chain.h"

#include "core/error.h"
#include "ops/backend.h"

namespace onerec {
namespace {

// How many of the first links the backend does in one kernel; 1 if none together.
std::size_t links_at_once(const OpContext& context, std::span<const PreparedLinearParams> links) {
  std::size_t count = 1;
  if (!prepared_at_once(context, links[0])) return count;
  while (count < links.size() && prepared_at_once(context, links[count]) &&
         context.backend.fuses_prepared_chain(links.first(count + 1))) {
    ++count;
  }
  return count;
}

}  // namespace

void prepared_chain(OpContext& context, std::span<const PreparedLinearParams> links) {
  while (!links.empty()) {
    const std::size_t count = links_at_once(context, links);
    if (count == 1) {
      prepared_linear(context, links[0]);
    } else {
      for (const PreparedLinearParams& link : links.first(count)) check_prepared_linear(context, link);
      context.backend.prepared_chain(context.stream, links.first(count));
    }
    links = links.subspan(count);
  }
}

void Backend::prepared_chain(Stream&, std::span<const PreparedLinearParams>) {
  throw InternalError("[prepared_chain] got a backend that has no such kernel, want its links. Issue them.");
}

}  // namespace onerec
