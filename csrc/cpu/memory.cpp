#include "memory.h"

#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace seqkernels {

void FreeMemory::operator()(char* memory) const { std::free(memory); }

Memory new_memory(int64_t bytes) {
  constexpr size_t kHugePage = 2 << 20, kCacheLine = 64;
  const auto wanted = static_cast<size_t>(bytes);
  const size_t alignment = wanted >= kHugePage ? kHugePage : kCacheLine;
  const size_t size = (wanted + alignment - 1) / alignment * alignment;
  void* const memory = std::aligned_alloc(alignment, size);
  if (!memory && size > 0) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == kHugePage) madvise(memory, size, MADV_HUGEPAGE);  // a hint: it may be refused
#endif
  return Memory(static_cast<char*>(memory));
}

namespace {

constexpr int64_t kKeptBytes = 16 << 20;

struct Spare {
  int64_t bytes = 0;
  Memory memory;
};
thread_local Spare spare;

}  // namespace

Scratch::Scratch(int64_t bytes) : bytes_(bytes) {
  if (spare.bytes >= bytes) {
    bytes_ = std::exchange(spare.bytes, 0);
    memory_ = std::move(spare.memory);
  } else {
    spare = {};
    memory_ = new_memory(bytes);
  }
}

Scratch::~Scratch() {
  if (bytes_ <= kKeptBytes && bytes_ > spare.bytes) spare = {bytes_, std::move(memory_)};
}

}  // namespace seqkernels
