// Matrix products on packed panels. Compiled once per ISA.
//
// C[rows, columns] = start + A[rows, K] B[K, columns] with B packed in panels: panel p holds columns [p W, p W + w) as
// [K][w], where W = kPanelVectors vectors and w < W only in the last panel. A register tile of up to max_rows rows
// stays in registers over all of K, so C is touched once. B may also be read where it lies, row by row of a matrix of
// `stride` columns.
//
// Type parameters: those of formats-inl.h. K is counted in packs of the format F; `operand.make<n>()` makes an operand
// of n rows (operands-inl.h).
#pragma once
#include "amx_driver-inl.h"
#include "register_kernel-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// A tile of C, for `rows` known at run time, at most max_rows_in_parts<F>(kVectors).
template <int kVectors, class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_rows(int64_t rows, const MakeOperand& operand, const typename F::Sum* b, int64_t stride,
                                 int64_t k_packs, const Tile<typename F::Sum>& tile) {
  if constexpr (F::kInTiles)
    if (rows >= kMinTileRegisterRows) return gemm_in_tiles<kVectors, F>(rows, operand, b, stride, k_packs, tile);
  constexpr int kWhole = F::kInTiles ? kMinTileRegisterRows - 1 : max_rows(kVectors);
  if (rows <= kWhole) return gemm_whole<kVectors, kWhole, F>(rows, operand, b, stride, k_packs, tile);
  if constexpr (!F::kInTiles && kVectors > kPartVectors) {
    constexpr int64_t kColumns = kPartVectors * Vec<typename F::Sum>::kLanes;
    gemm_rows<kPartVectors, F>(rows, operand, b, stride, k_packs, tile);
    gemm_rows<kVectors - kPartVectors, F>(rows, operand, b + kColumns, stride, k_packs, tile.from(kColumns));
  }
}

// A tile of C, for `rows` and `vectors` known at run time, the latter at most kPanelVectors.
template <class F, int kVectors = kPanelVectors, class MakeOperand>
SEQKERNELS_INLINE void gemm(int64_t rows, int vectors, const MakeOperand& operand, const typename F::Sum* b,
                            int64_t stride, int64_t k_packs, const Tile<typename F::Sum>& tile) {
  if constexpr (kVectors > 1)
    if (vectors < kVectors) return gemm<F, kVectors - 1>(rows, vectors, operand, b, stride, k_packs, tile);
  gemm_rows<kVectors, F>(rows, operand, b, stride, k_packs, tile);
}

// A tile of C from a packed panel of B.
template <class F, class MakeOperand>
SEQKERNELS_INLINE void gemm(int64_t rows, int vectors, const MakeOperand& operand, const typename F::Sum* b,
                            int64_t k_packs, const Tile<typename F::Sum>& tile) {
  gemm<F>(rows, vectors, operand, b, int64_t(vectors) * Vec<typename F::Sum>::kLanes, k_packs, tile);
}

template <class T>
void copy(const T* from, int64_t n, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

// A tile of C from a packed panel of B, where only `columns` columns are there to write.
template <class F, class MakeOperand>
SEQKERNELS_INLINE void gemm_edge(int64_t rows, int vectors, int64_t columns, const MakeOperand& operand,
                                 const typename F::Sum* b, int64_t k_packs, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  constexpr int kLanes = Vec<T>::kLanes, kWidth = kPanelVectors * kLanes;
  if (columns >= vectors * kLanes) return gemm<F>(rows, vectors, operand, b, k_packs, tile);
  alignas(64) T whole[max_rows_in_parts<F>(kPanelVectors) * kWidth];
  const bool accumulates = tile.start == tile.data;
  for (int64_t r = 0; accumulates && r < rows; ++r) copy(tile.data + r * tile.stride, columns, whole + r * kWidth);
  gemm<F>(rows, vectors, operand, b, k_packs,
          accumulates ? Tile<T>::accumulate(whole, kWidth) : Tile<T>{whole, kWidth, tile.start, tile.start_stride});
  for (int64_t r = 0; r < rows; ++r) copy(whole + r * kWidth, columns, tile.data + r * tile.stride);
}

}  // namespace seqkernels::SEQKERNELS_ISA
