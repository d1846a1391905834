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

// What block `rank` of the cluster has where this block has `own`, for plain accesses.
inline uint32_t* peer_of(uint32_t* own, int rank, Where where = Where::current()) {
  return emulator::peer(own, rank, where);
}

}  // namespace seqkernels::cuda
