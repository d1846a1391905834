// Random flags. Compiled once per ISA; all draw the same, in any number of threads.
//
// Numbers are those of Threefry4x32-20 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011), which wants nothing
// that vectors are slow at: four words for a counter, two flags each. A block is 16 counters.
#pragma once
#include "kernels.h"
#include "vec-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

struct Threefry {
  static constexpr int kLanes = VecF::kLanes;  // counters at a time
  typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

  // The words of counters from `first` on, a multiple of as many.
  SEQKERNELS_INLINE static void make(uint64_t seed, uint64_t first, Words (&words)[4]) {
    constexpr int kRotations[8][2] = {{10, 26}, {11, 21}, {13, 27}, {23, 5}, {6, 20}, {17, 11}, {25, 10}, {18, 20}};
    const uint32_t low = uint32_t(seed), high = uint32_t(seed >> 32);
    const uint32_t key[5] = {low, high, 0, 0, low ^ high ^ 0x1BD11BDA};
    words[0] = words[1] = words[2] = words[3] = Words{};
    for (int i = 0; i < kLanes; ++i) words[0][i] = uint32_t(i);
    words[0] += uint32_t(first) + key[0], words[1] += uint32_t(first >> 32) + key[1];
#pragma GCC unroll 20
    for (int round = 0; round < 20; ++round) {
      const auto& by = kRotations[round % 8];
      Words &a = words[1 + 2 * (round % 2)], &b = words[3 - 2 * (round % 2)];
      words[0] += a, rotate(a, by[0]), a ^= words[0];
      words[2] += b, rotate(b, by[1]), b ^= words[2];
      if (round % 4 != 3) continue;
      const int injection = round / 4 + 1;
      for (int word = 0; word < 4; ++word) words[word] += key[(injection + word) % 5];
      words[3] += uint32_t(injection);
    }
  }

 private:
  SEQKERNELS_INLINE static void rotate(Words& words, int by) { words = words << by | words >> (32 - by); }
};

inline void random_flags(const RandomFlagsArguments& p, Member member) {
  constexpr int kCounters = 16, kOfWord = 2 * kCounters, kFlags = 4 * kOfWord;  // of a block
  constexpr int kAtOnce = 2 * Threefry::kLanes;
  static_assert(kCounters % Threefry::kLanes == 0);
  typedef uint16_t Halves __attribute__((vector_size(kAtOnce * sizeof(uint16_t))));
  typedef uint8_t Flags __attribute__((vector_size(kAtOnce)));
  const int64_t blocks = (p.count + kFlags - 1) / kFlags;
  const int64_t begin = blocks * member.rank / member.size, end = blocks * (member.rank + 1) / member.size;
  for (int64_t block = begin; block < end; ++block) {
    uint8_t flags[4][kOfWord];
    for (int part = 0; part < kOfWord; part += kAtOnce) {
      Threefry::Words words[4];
      Threefry::make(p.seed, uint64_t(block) * kCounters + uint64_t(part / 2), words);
      for (int word = 0; word < 4; ++word) {
        const Flags own = __builtin_convertvector(Halves(words[word]) <= p.last, Flags) & uint8_t(1);
        __builtin_memcpy(flags[word] + part, &own, sizeof own);
      }
    }
    const int64_t first = block * kFlags, left = p.count - first;
    __builtin_memcpy(p.flags + first, flags, size_t(left < kFlags ? left : kFlags));
  }
}

}  // namespace seqkernels::SEQKERNELS_ISA
