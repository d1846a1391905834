// The primitives of csrc/cuda/device.h and mma.cuh on a CPU: every CUDA thread is a fiber, all on one OS thread, in an
// order drawn from a seed. So the kernels' own source runs without a GPU, repeatably, and a debugger can step through it.
//
// What it finds, beyond wrong results:
//   deadlocks        a skipped barrier, or spinning for a word that nobody will store
//   divergence       threads that meet at different barriers, lanes at different collectives
//   bad addresses    behind or before shared memory; a peer's that has not started or has ended; misaligned words
//   missing fences   a relaxed store is seen late, and in any order with others, until a fence; its own block
//                    sees it in time, so exchanged words must be read by load_relaxed there, too
//   missing barriers as data races, if kernels are compiled with -fsanitize=thread: each fiber is a thread to it, and
//                    only barriers order plain accesses, each for its own threads. Shuffles, mma, relaxed words and
//                    fences do not, as device.h's memory model wants; so what is handed over by fences is reported.
// What it does not: loads that are executed early (but the words of one Words4 come in any order), accesses that only
// some interleavings have, unless a seed leads there, and endless loops without a primitive.
//
// Compile with -std=c++20 -DSEQKERNELS_EMULATED; the emulator's own .cpp files without sanitizers, whatever the kernels
// have. One launch at a time.
#pragma once
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <source_location>

namespace seqkernels::emulator {

struct Launch {
  int blocks, threads, cluster = 1;  // threads of a block, blocks of a cluster
  size_t shared_bytes = 0;           // dynamic shared memory of a block: NaN in every type when the block starts
  uint64_t seed = 0;                 // the same seed is the same interleaving
};

using Where = std::source_location;

void run(const Launch& launch, void (*body)(void*), void* argument);

// body() is run by every thread of every block. What it throws is thrown here; std::runtime_error says what is listed
// above, and where each thread stood.
template <class Body>
void launch(const Launch& launch, Body body) {
  run(launch, [](void* argument) { (*static_cast<Body*>(argument))(); }, &body);
}

// ---------------------------------------------------------------- what the primitives below are made of

struct Thread {
  int index, block, cluster_rank, block_threads, blocks;
  char* shared;
};
extern Thread* current;  // null outside of launches

enum class Group { kWarp, kTeam, kBlock, kCluster };
constexpr int kTeamThreads = 256;  // of a team of a block, where it has several

void barrier(Group group, Where where);
uint64_t exchange(uint64_t value, int mask, Where where);  // what lane ^ mask gave
bool all(bool value, Where where);                         // whether all lanes gave true

enum class Operands { kBFloat16, kFloat16, kTFloat32 };
void multiply(Operands operands, float* d, const uint32_t* a, uint32_t b0, uint32_t b1, Where where);

uint32_t* peer(uint32_t* own, int rank, Where where);

void pause(Where where);
void check_team(int number, int threads, Where where);  // whether it is this thread's
void check_address(const void* address, size_t bytes, cuda::Scope scope, Where where);
void interleave();                           // perhaps lets others run
uint32_t draw(uint32_t below);               // a random number
bool hold(uint32_t* to, uint32_t word);      // whether the store of `word` is now this thread's to do later
const uint32_t* held(const uint32_t* from);  // the word that this block has still to store there, or null
void store_held();                           // now, what this thread stored or knows to be stored by its block

}  // namespace seqkernels::emulator

#define SEQKERNELS_KERNEL void
#define SEQKERNELS_DEVICE inline
#define SEQKERNELS_LAUNCH_BOUNDS(threads, blocks)
#define SEQKERNELS_UNROLL
#define SEQKERNELS_UNROLL_BY(n)
#define SEQKERNELS_HAS_CLUSTERS 1

namespace seqkernels::cuda {

using emulator::Where;

// ---------------------------------------------------------------- threads

inline int thread_index() { return emulator::current->index; }
inline int lane_index() { return emulator::current->index % kWarpSize; }
inline int warp_index(Where where = Where::current()) {  // a collective, as it is on a GPU
  return static_cast<int>(emulator::exchange(static_cast<uint64_t>(thread_index() / kWarpSize), 0, where));
}
inline int block_index() { return emulator::current->block; }
inline int block_threads() { return emulator::current->block_threads; }
inline int64_t grid_threads() { return static_cast<int64_t>(emulator::current->blocks) * block_threads(); }

inline void block_barrier(Where where = Where::current()) { emulator::barrier(emulator::Group::kBlock, where); }
inline void team_barrier(int number, int threads, Where where = Where::current()) {
  emulator::check_team(number, threads, where);
  emulator::barrier(emulator::Group::kTeam, where);
}
inline void warp_barrier(Where where = Where::current()) { emulator::barrier(emulator::Group::kWarp, where); }

inline bool warp_all(bool value, Where where = Where::current()) { return emulator::all(value, where); }
inline uint32_t shuffle_xor(uint32_t value, int mask, Where where = Where::current()) {
  return static_cast<uint32_t>(emulator::exchange(value, mask, where));
}
inline float shuffle_xor(float value, int mask, Where where = Where::current()) {
  return std::bit_cast<float>(shuffle_xor(std::bit_cast<uint32_t>(value), mask, where));
}
inline double shuffle_xor(double value, int mask, Where where = Where::current()) {
  return std::bit_cast<double>(emulator::exchange(std::bit_cast<uint64_t>(value), mask, where));
}

// ---------------------------------------------------------------- shared memory

inline char* shared_memory() { return emulator::current->shared; }
inline int cluster_rank() { return emulator::current->cluster_rank; }
inline void cluster_barrier(Where where = Where::current()) { emulator::barrier(emulator::Group::kCluster, where); }

// ---------------------------------------------------------------- memory shared by running blocks

template <Scope kScope>
Words4 load_relaxed(const Words4* from, Where where = Where::current()) {
  emulator::check_address(from, sizeof(Words4), kScope, where);
  Words4 v;
  const uint32_t order = emulator::draw(4);
  for (uint32_t i = 0; i < 4; ++i) {
    emulator::interleave();
    uint32_t* word = const_cast<uint32_t*>(&from->word[i ^ order]);
    const uint32_t* own = emulator::held(word);
    v.word[i ^ order] = own ? *own : std::atomic_ref(*word).load(std::memory_order_relaxed);
  }
  return v;
}

namespace {  // which file's, a report of ThreadSanitizer does not mind

inline void store_word(uint32_t* to, uint32_t word) {
  if (!emulator::hold(to, word)) std::atomic_ref(*to).store(word, std::memory_order_relaxed);
  emulator::interleave();
}

}  // namespace

template <Scope kScope, int kCount>
void store_relaxed(Words<kCount>* to, const Words<kCount>& v, Where where = Where::current()) {
  emulator::check_address(to, sizeof v, kScope, where);
  for (int i = 0; i < kCount; ++i) store_word(&to->word[i], v.word[i]);
}
inline uint32_t* peer_address(uint32_t* own, int rank, Where where = Where::current()) {
  return emulator::peer(own, rank, where);
}
template <int kCount>
void store_peer(Words<kCount>* to, const Words<kCount>& v, Where where = Where::current()) {
  store_relaxed<Scope::kCluster>(to, v, where);
}

template <Scope kScope>
void fence() {
  emulator::store_held();
}

template <Scope kScope>
void strict_fence() {}

inline int64_t wide_product(int a, int b) { return static_cast<int64_t>(a) * b; }
inline int launder(int value) { return value; }
inline uint32_t* launder(uint32_t* pointer) { return pointer; }

// Has the address checked.
inline void prefetch(const void* word) { (void)*static_cast<const volatile char*>(word); }

inline uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

inline void pause(Where where = Where::current()) { emulator::pause(where); }

// ---------------------------------------------------------------- tensor cores

struct BFloat16;
struct Float16;
struct TFloat32;

template <class Operand>
constexpr emulator::Operands kOperands = Operand::unknown;
template <>
inline constexpr emulator::Operands kOperands<BFloat16> = emulator::Operands::kBFloat16;
template <>
inline constexpr emulator::Operands kOperands<Float16> = emulator::Operands::kFloat16;
template <>
inline constexpr emulator::Operands kOperands<TFloat32> = emulator::Operands::kTFloat32;

template <class Operand>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Where where = Where::current()) {
  emulator::multiply(kOperands<Operand>, d, a, b0, b1, where);
}

}  // namespace seqkernels::cuda
