#include "memory.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace seqkernels {

void FreeMemory::operator()(char* memory) const { std::free(memory); }

namespace {
constexpr size_t kHugePage = 2 << 20;
}

void want_huge_pages([[maybe_unused]] char* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory), last = first + static_cast<uintptr_t>(bytes);
  const uintptr_t begin = (first + kHugePage - 1) / kHugePage * kHugePage, end = last / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Memory new_memory(int64_t bytes) {
  constexpr size_t kCacheLine = 64;
  const auto wanted = static_cast<size_t>(bytes);
  const size_t alignment = wanted >= kHugePage ? kHugePage : kCacheLine;
  // Huge pages for whole ones, and for what fills most of one.
  const size_t huge = (wanted + kHugePage / 2) / kHugePage * kHugePage;
  const size_t size = std::max((wanted + kCacheLine - 1) / kCacheLine * kCacheLine, alignment == kHugePage ? huge : 0);
  void* memory = nullptr;
  if (size > 0 && posix_memalign(&memory, alignment, size) != 0) throw std::bad_alloc();
  if (alignment == kHugePage) want_huge_pages(static_cast<char*>(memory), static_cast<int64_t>(huge));
  return Memory(static_cast<char*>(memory));
}

namespace {

constexpr int64_t kKeptBytes = 64 << 20;

// What calls that have ended leave to later ones, on whatever thread. Nobody waits for it: who finds it in use does without, as
// does a process that was forked meanwhile.
class Spares {
 public:
  // The smallest that is large enough, or none.
  Spare take(int64_t bytes) {
    if (bytes == 0) return {};
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return {};
    Spare* best = nullptr;
    for (Spare& spare : spares_)
      if (spare.bytes >= bytes && (!best || spare.bytes < best->bytes)) best = &spare;
    // What a caller who finds none gives back will be of more use than the largest of these.
    Spare spare = remove(best ? *best : *std::max_element(spares_.begin(), spares_.end(), is_smaller));
    return best ? std::move(spare) : Spare();
  }

  void give(Spare spare) {
    if (spare.bytes == 0) return;
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || bytes_ + spare.bytes > kKeptBytes) return;
    Spare& smallest = *std::min_element(spares_.begin(), spares_.end(), is_smaller);
    remove(smallest);
    bytes_ += spare.bytes;
    smallest = std::move(spare);
  }

 private:
  static bool is_smaller(const Spare& a, const Spare& b) { return a.bytes < b.bytes; }

  Spare remove(Spare& spare) {
    bytes_ -= spare.bytes;
    return std::exchange(spare, Spare());
  }

  std::mutex mutex_;
  std::array<Spare, 16> spares_;  // empty ones have no bytes
  int64_t bytes_ = 0;
};

Spares& spares() {
  static Spares* const all = new Spares;  // never destroyed: threads may outlive main
  return *all;
}

std::atomic<bool> fills = false;

}  // namespace

Scratch::Scratch(int64_t bytes) : memory_(spares().take(bytes)) {
  if (memory_.bytes < bytes) memory_ = {bytes, new_memory(bytes)};
  if (fills && bytes > 0) std::memset(get(), 0xff, size_t(bytes));  // a NaN of every type
}

void fill_scratch(bool fill) { fills = fill; }

Scratch::~Scratch() { spares().give(std::move(memory_)); }

}  // namespace seqkernels
