// What the self test's kernels share.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>

#include "mma.cuh"

namespace seqkernels::cuda {

using emulator::Launch;
using emulator::launch;

inline uint64_t seed = 0;

inline void expect(bool holds, Where where = Where::current()) {
  if (!holds) throw std::logic_error("wrong result in line " + std::to_string(where.line()));
}

template <class T>
T* shared() {
  return reinterpret_cast<T*>(shared_memory());
}

}  // namespace seqkernels::cuda
