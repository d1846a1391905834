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
#define SEQKERNELS_CLUSTER "cluster"
#else
#define SEQKERNELS_HAS_CLUSTERS 0
#define SEQKERNELS_CLUSTER "cta"
#endif

namespace seqkernels::cuda {

// ---------------------------------------------------------------- threads

SEQKERNELS_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
SEQKERNELS_DEVICE int lane_index() {
  int lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
// The same value in every lane, and known to be so by the compiler.
SEQKERNELS_DEVICE int warp_index() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / kWarpSize, 0); }
SEQKERNELS_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
SEQKERNELS_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SEQKERNELS_DEVICE int64_t grid_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

SEQKERNELS_DEVICE void block_barrier() { __syncthreads(); }
// The same for `threads` threads that follow one another, whose number among such is `number`.
SEQKERNELS_DEVICE void team_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number + 1), "r"(threads) : "memory");
}
SEQKERNELS_DEVICE void warp_barrier() { __syncwarp(); }

// Whether it is so in all 32 lanes, which all take part.
SEQKERNELS_DEVICE bool warp_all(bool value) { return __all_sync(~0u, value); }
// The value of the lane whose index differs in the bits of `mask`; all 32 lanes take part.
SEQKERNELS_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
SEQKERNELS_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
SEQKERNELS_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

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

SEQKERNELS_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Where block `rank` of the cluster has what this block has at `own` (shared memory). What lies behind, lies behind that.
SEQKERNELS_DEVICE uint32_t* peer_address(uint32_t* own, int rank) {
  uint64_t peer;
  asm("mapa.u64 %0, %1, %2;" : "=l"(peer) : "l"(own), "r"(rank));
  return reinterpret_cast<uint32_t*>(peer);
}
#else
SEQKERNELS_DEVICE int cluster_rank() { return 0; }
SEQKERNELS_DEVICE void cluster_barrier() { block_barrier(); }
SEQKERNELS_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
SEQKERNELS_DEVICE uint32_t* peer_address(uint32_t* own, int) { return own; }
#endif

// ---------------------------------------------------------------- memory shared by running blocks

// Each of the four words by itself is as some thread wrote it; together they may be of different writes. Memory of kCluster
// is shared, that of kDevice global.
template <Scope kScope>
SEQKERNELS_DEVICE Words4 load_relaxed(const Words4* from) {
  Words4 v;
  if constexpr (kScope == Scope::kDevice)
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "l"(from)
                 : "memory");
  else
    asm volatile("ld.relaxed." SEQKERNELS_CLUSTER ".shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(shared_address(from))
                 : "memory");
  return v;
}

template <Scope kScope>
SEQKERNELS_DEVICE void store_relaxed(Words<1>* to, const Words<1>& v) {
  static_assert(kScope == Scope::kDevice);  // words of a cluster go to all of it: store_peer
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v.word[0]) : "memory");
}

// To memory of any block of the cluster (peer_address).
SEQKERNELS_DEVICE void store_peer(Words<1>* to, const Words<1>& v) {
  asm volatile("st.relaxed." SEQKERNELS_CLUSTER ".u32 [%0], %1;" ::"l"(to), "r"(v.word[0]) : "memory");
}
SEQKERNELS_DEVICE void store_peer(Words<2>* to, const Words<2>& v) {
  asm volatile("st.relaxed." SEQKERNELS_CLUSTER ".v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1])
               : "memory");
}

template <Scope kScope>
SEQKERNELS_DEVICE void store_relaxed(Words4* to, const Words4& v) {
  if constexpr (kScope == Scope::kDevice)
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.word[0]), "r"(v.word[1]),
                 "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
  else
    asm volatile("st.relaxed." SEQKERNELS_CLUSTER ".shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(to)),
                 "r"(v.word[0]), "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
                 : "memory");
}

// This thread's earlier stores come before its later ones for all of the scope; of a cluster, those to the block's own
// shared memory: a fence for everything would wait for global memory. Stores alone, or else L1 would be emptied each time.
template <Scope kScope>
SEQKERNELS_DEVICE void fence() {
#if SEQKERNELS_HAS_CLUSTERS
  if constexpr (kScope == Scope::kDevice)
    asm volatile("fence.release.gpu;" ::: "memory");
  else
    asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
#else
  if constexpr (kScope == Scope::kDevice)
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  else
    asm volatile("fence.acq_rel.cta;" ::: "memory");
#endif
}

// All of this thread's accesses before come before those after, to the letter of PTX's memory model. Not needed by what Hopper
// does; a STRICT build has them, to tell whether a wrong result is one of ordering.
template <Scope kScope>
SEQKERNELS_DEVICE void strict_fence() {
#if defined(SEQKERNELS_CUDA_STRICT)
  if constexpr (kScope == Scope::kDevice)
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
  else
    asm volatile("fence.acq_rel." SEQKERNELS_CLUSTER ";" ::: "memory");
#endif
}

// The value, laundered: the compiler does not know whence it is, so it keeps it in a register and does not rematerialise it.
SEQKERNELS_DEVICE int launder(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
SEQKERNELS_DEVICE uint32_t* launder(uint32_t* pointer) {
  asm volatile("" : "+l"(pointer));
  return pointer;
}

// Their product in 64 bits, by one instruction. Left to itself, the compiler widens a factor that is the same in all steps
// before the first one, and multiplies by it in four.
SEQKERNELS_DEVICE int64_t wide_product(int a, int b) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}

// Fetches a word into L2, if it is not there.
SEQKERNELS_DEVICE void prefetch(const void* word) { asm volatile("prefetch.global.L2 [%0];" ::"l"(word)); }

SEQKERNELS_DEVICE uint32_t larger(uint32_t a, uint32_t b) { return max(a, b); }

// Called by a thread that spins.
SEQKERNELS_DEVICE void pause() {}

}  // namespace seqkernels::cuda
#endif
