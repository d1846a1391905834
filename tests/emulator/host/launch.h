// The emulator's launch without its primitives, which host code has no use for.
#pragma once
#include <cstddef>
#include <cstdint>

namespace seqkernels::emulator {

void launch_on(int blocks, int threads, int cluster, size_t shared_bytes, uint64_t seed, void (*body)(void*),
               void* argument);

}  // namespace seqkernels::emulator
