// The inner loop of a product: a tile of C that stays in vector registers over all of K. Compiled once per ISA.
//
// Type parameters: those of formats-inl.h; Operand is one of operands-inl.h. K is counted in packs.
#pragma once
#include "operands-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Adds what pack k of A and the same pack of B, a row of it, give to all sums of a tile.
template <int kRows, int kVectors, class F, class Operand>
SEQKERNELS_INLINE void multiply_add(typename F::Raw (&sum)[kRows][kVectors], const Operand& a, int64_t k,
                                    const typename F::Sum* b) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  if constexpr (kRows < kVectors) {
    Raw x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = a.template spread<F>(r, k);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Raw w = load(b + v * Vec<T>::kLanes).raw;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) F::multiply_add(sum[r][v], x[r], w);
    }
  } else {
    Raw w[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) w[v] = load(b + v * Vec<T>::kLanes).raw;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Raw x = a.template spread<F>(r, k);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) F::multiply_add(sum[r][v], x, w[v]);
    }
  }
}

// One tile of C, kRows x kVectors. Longer than a screen, for the sums must be one function's to stay in registers. They begin at
// zero, and what the tile starts from is added in the end: a sum over many rows that is made in several calls is then one of
// sums, whose rounding grows with their number and not with that of the rows.
template <int kRows, int kVectors, class F, class Operand>
__attribute__((noinline)) void gemm_tile(const Operand& operand, const typename F::Sum* b, int64_t stride,
                                         int64_t k_packs, const Tile<typename F::Sum>& tile_of_c) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  constexpr int kLanes = Vec<T>::kLanes, kWidth = kVectors * kLanes;
  // Few accumulators would wait for the latency of the multiply-add: then several sets take turns.
  constexpr int kSets = kRows * kVectors >= 8 ? 1 : (kRows * kVectors >= 4 ? 2 : 4);
  constexpr int64_t kPrefetch = 4096 / sizeof(T), kLine = 64 / sizeof(T);
  const Operand a = operand;  // copies, for the compiler to keep in registers
  const Tile<T> tile = tile_of_c;

  // Taken out, so that the loop below runs at least once: sums that might pass it by would be spilled on both its
  // sides.
  if (k_packs <= 0) {
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kWidth; v += kLanes)
        store(tile.data + r * tile.stride + v, load(tile.start + r * tile.start_stride + v));
    return;
  }

  Raw sum[kSets][kRows][kVectors];
#pragma GCC unroll 4
  for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[s][r][v] = Raw{};

  int64_t k = 0;
  for (; k + kSets <= k_packs; k += kSets) {
#pragma GCC unroll 4
    for (int s = 0; s < kSets; ++s, b += stride) {
#pragma GCC unroll 4
      for (int line = 0; line < kWidth; line += kLine) __builtin_prefetch(b + kPrefetch + line);
      multiply_add<kRows, kVectors, F>(sum[s], a, k + s, b);
    }
  }
  if constexpr (kSets > 1)
    for (; k < k_packs; ++k, b += stride) multiply_add<kRows, kVectors, F>(sum[0], a, k, b);

#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      Raw total = sum[0][r][v];
#pragma GCC unroll 4
      for (int s = 1; s < kSets; ++s) total += sum[s][r][v];
      store(tile.data + r * tile.stride + v * kLanes,
            Vec<T>(total) + load(tile.start + r * tile.start_stride + v * kLanes));
    }
}

// One tile of C for `rows` known at run time, at most kRows.
template <int kVectors, int kRows, class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_whole(int64_t rows, const MakeOperand& operand, const typename F::Sum* b, int64_t stride,
                                  int64_t k_packs, const Tile<typename F::Sum>& tile) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return gemm_tile<kRows, kVectors, F>(operand.template make<kRows>(), b, stride, k_packs, tile);
    gemm_whole<kVectors, kRows - 1, F>(rows, operand, b, stride, k_packs, tile);
  }
}

}  // namespace seqkernels::SEQKERNELS_ISA
