// The few primitives that the kernels use, and nothing else of CUDA. The kernels' source is compiled twice: by nvcc for
// GPUs, with the definitions below, and by the host's compiler for tests without a GPU, with those of
// tests/emulator/emulator.h, which runs every CUDA thread as a fiber.
//
// Memory model: words that blocks of one launch exchange are read and written with load_relaxed / store_relaxed alone;
// everything else that crosses threads goes through block_barrier or a kernel's end.
#pragma once
#include <cstdint>

namespace seqkernels::cuda {

// 1, 2 or 4 words that one instruction loads or stores.
template <int kCount>
struct alignas(4 * kCount) Words {
  uint32_t word[kCount];
};
using Words4 = Words<4>;

// Who sees a relaxed store or is ordered by a fence: the blocks of a cluster (of one block, on devices without clusters),
// or all blocks of the device.
enum class Scope { kCluster, kDevice };

constexpr int kWarpSize = 32;

}  // namespace seqkernels::cuda

#if defined(SEQKERNELS_EMULATED)
#include "emulator.h"
#else

#include <cuda_runtime.h>

#define SEQKERNELS_KERNEL __global__ void
#define SEQKERNELS_DEVICE __device__ __forceinline__
#define SEQKERNELS_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define SEQKERNELS_UNROLL _Pragma("unroll")
#define SEQKERNELS_PRAGMA(text) _Pragma(#text)
#define SEQKERNELS_UNROLL_BY(n) SEQKERNELS_PRAGMA(unroll n)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define SEQKERNELS_HAS_CLUSTERS 1
#else
#define SEQKERNELS_HAS_CLUSTERS 0
#endif

namespace seqkernels::cuda {

// ---------------------------------------------------------------- threads

SEQKERNELS_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
// Read anew each time: what depends on it is computed anew, too, instead of being kept in registers.
SEQKERNELS_DEVICE int lane_index() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
// The same value in every lane, and known to be so by the compiler.
SEQKERNELS_DEVICE int warp_index() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpSize, 0); }
SEQKERNELS_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
SEQKERNELS_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SEQKERNELS_DEVICE int64_t grid_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

SEQKERNELS_DEVICE void block_barrier() { __syncthreads(); }
SEQKERNELS_DEVICE void warp_barrier() { __syncwarp(); }

// The value of the lane whose index differs in the bits of `mask`; all 32 lanes take part.
SEQKERNELS_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
SEQKERNELS_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

// ---------------------------------------------------------------- shared memory

// The block's dynamic shared memory, aligned to 16 bytes: the only shared memory that kernels use.
SEQKERNELS_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

#if SEQKERNELS_HAS_CLUSTERS
SEQKERNELS_DEVICE int cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Every thread of the cluster arrives; what they wrote to shared memory before is seen after.
SEQKERNELS_DEVICE void cluster_barrier() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// Where block `rank` of the cluster has what this block has at `own` (shared memory).
SEQKERNELS_DEVICE uint32_t* peer_shared(uint32_t* own, int rank) {
  uint64_t peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(reinterpret_cast<uint64_t>(own)), "r"(rank));
  return reinterpret_cast<uint32_t*>(peer);
}
#else
SEQKERNELS_DEVICE int cluster_rank() { return 0; }
SEQKERNELS_DEVICE void cluster_barrier() { block_barrier(); }
SEQKERNELS_DEVICE uint32_t* peer_shared(uint32_t* own, int) { return own; }
#endif

// ---------------------------------------------------------------- memory shared by running blocks

// Each of the four words by itself is as some thread wrote it; together they may be of different writes. The same
// instruction for both scopes: an address knows whether it is in shared memory.
SEQKERNELS_DEVICE Words4 load_relaxed(const Words4* from, Scope) {
  Words4 v;
  asm volatile("ld.relaxed.gpu.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(from)
               : "memory");
  return v;
}

SEQKERNELS_DEVICE void store_relaxed(uint32_t* to, uint32_t word, Scope) {
  asm volatile("st.relaxed.gpu.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory");
}

// This thread's earlier stores come before its later ones for all of the scope; of a cluster, those to the block's own
// shared memory: a fence for everything would wait for global memory. Stores alone, or else L1 would be emptied each time.
SEQKERNELS_DEVICE void fence(Scope scope) {
#if SEQKERNELS_HAS_CLUSTERS
  if (scope == Scope::kDevice)
    asm volatile("fence.release.gpu;" ::: "memory");
  else
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
#else
  if (scope == Scope::kDevice)
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  else
    asm volatile("fence.acq_rel.cta;" ::: "memory");
#endif
}

// The value, computed by now: the compiler does not leave it until it is needed, behind a barrier perhaps.
SEQKERNELS_DEVICE int settled(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// The same address, but the compiler does not know: what it makes of it is not kept in registers for when it is needed again.
template <class T>
SEQKERNELS_DEVICE T* anew(T* address) {
  asm volatile("" : "+l"(address));
  return address;
}

// Fetches a word into L2, if it is not there.
SEQKERNELS_DEVICE void prefetch(const void* word) { asm volatile("prefetch.global.L2 [%0];" ::"l"(word)); }

// Called by a thread that spins.
SEQKERNELS_DEVICE void pause() {}

}  // namespace seqkernels::cuda
#endif
