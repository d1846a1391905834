#include "launch.h"

#include "device.h"

namespace seqkernels::emulator {

void launch_on(int blocks, int threads, int cluster, size_t shared_bytes, uint64_t seed, void (*body)(void*),
               void* argument) {
  run({blocks, threads, cluster, shared_bytes, seed}, body, argument);
}

}  // namespace seqkernels::emulator
