// Memory of the CPU kernels' own: scratch space of a call, packed weights of a frozen module.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <memory>

namespace seqkernels {

struct FreeMemory {
  void operator()(char* memory) const;
};
using Memory = std::unique_ptr<char[], FreeMemory>;

// Uninitialised, aligned to cache lines; from 2 MB on, on huge pages where the system grants them: these cost one page
// fault instead of 512, the hardware prefetches across all of them, and they lie evenly in the sets of a cache.
Memory new_memory(int64_t bytes);

// Memory for the time of a call. Each thread keeps what its last call had, up to 16 MB, for the next one: else the system
// would take the pages back and clear them anew every time.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  char* get() const { return memory_.get(); }

 private:
  int64_t bytes_;
  Memory memory_;
};

}  // namespace seqkernels
