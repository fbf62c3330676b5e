#include "shared_memory.h"

#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace onerec::simt {
namespace {

constexpr std::size_t kGuard = 256;
constexpr std::size_t kAlignment = 128;
constexpr std::byte kGuardByte{0xa5};

// The calling thread's thread-local variables of the module that this code is part of.
std::span<std::byte> thread_local_block() {
  struct Search {
    std::uintptr_t code;
    std::span<std::byte> found;
  } search{reinterpret_cast<std::uintptr_t>(&thread_local_block), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* module, std::size_t, void* data) {
        auto& wanted = *static_cast<Search*>(data);
        const std::span headers(module->dlpi_phdr, module->dlpi_phnum);
        const auto holds_code = [&](const ElfW(Phdr) & header) {
          const std::uintptr_t begin = module->dlpi_addr + header.p_vaddr;
          return header.p_type == PT_LOAD && wanted.code >= begin && wanted.code < begin + header.p_memsz;
        };
        if (std::none_of(headers.begin(), headers.end(), holds_code)) return 0;
        for (const ElfW(Phdr) & header : headers) {
          if (header.p_type == PT_TLS && module->dlpi_tls_data != nullptr) {
            wanted.found = {static_cast<std::byte*>(module->dlpi_tls_data), header.p_memsz};
          }
        }
        return 1;
      },
      &search);
  return search.found;
}

}  // namespace

StaticShared::StaticShared() {
  const std::span<std::byte> block = thread_local_block();
  begin_ = block.data();
  before_.assign(block.begin(), block.end());
}

StaticShared::~StaticShared() { std::copy(before_.begin(), before_.end(), begin_); }

void StaticShared::poison() {
  if (!before_.empty()) std::memset(begin_, kSharedPoison, before_.size());
}

DynamicShared::DynamicShared(std::size_t bytes)
    : bytes_(bytes), memory_(kGuard + kAlignment + bytes + kGuard, kGuardByte) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory_.data() + kGuard);
  begin_ = memory_.data() + kGuard + (kAlignment - address % kAlignment) % kAlignment;
}

void DynamicShared::poison() { std::memset(begin_, kSharedPoison, bytes_); }

bool DynamicShared::guards_intact() const {
  const auto is_guard = [](std::byte byte) { return byte == kGuardByte; };
  return std::all_of(begin_ - kGuard, begin_, is_guard) &&
         std::all_of(begin_ + bytes_, begin_ + bytes_ + kGuard, is_guard);
}

}  // namespace onerec::simt
