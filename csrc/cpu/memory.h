// Memory of the CPU kernels' own: scratch space of a call, packed weights of a frozen module.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "../api.h"

namespace seqkernels {

struct FreeMemory {
  SEQKERNELS_API void operator()(char* memory) const;
};
using Memory = std::unique_ptr<char[], FreeMemory>;

// Uninitialised, aligned to cache lines; from 2 MB on, on huge pages where the system grants them: these cost one page
// fault instead of 512, the hardware prefetches across all of them, and they lie evenly in the sets of a cache.
Memory new_memory(int64_t bytes);

// Asks for huge pages where memory that somebody else has allocated holds whole ones. It is a hint, which may be refused.
void want_huge_pages(char* memory, int64_t bytes);

struct Spare {
  int64_t bytes = 0;
  Memory memory;
};

// Memory for the time of a call. It is kept for later calls, up to 64 MB in the process: else the system would take the
// pages back and clear them anew every time. Calls that follow each other, such as forward and backward, share it.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* get() const { return memory_.memory.get(); }

 private:
  Spare memory_;
};

// From now on, whether scratch memory is handed out full of NaN. Tests ask for it: what an earlier call left there may
// look right.
SEQKERNELS_API void fill_scratch(bool fill);

}  // namespace seqkernels
