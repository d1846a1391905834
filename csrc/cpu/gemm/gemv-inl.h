// The small-M path: products of few rows, with weights read where they lie. Compiled once per ISA.
//
// Type parameters: those of formats-inl.h; Rows is RowPointers or EvenRows.
#pragma once
#include "operands-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// So many rows of x share the weights they are multiplied with.
constexpr int kGemvRows = 2;

// Rows of a weight where they lie; beyond the last row, that row again.
template <class S>
struct WeightRows {
  const S* first;
  int64_t stride, last;
  SEQKERNELS_INLINE const S* operator[](int64_t row) const { return first + min(row, last) * stride; }
};

// A vector of C, one number for each weight row: start + x w, for as few rows of x that packing would cost more than
// the product. Eight weight rows at a time are as many streams as the hardware prefetches well; eight sums hide the
// latency of the multiply-add.
template <class S, class F, int kRows>
SEQKERNELS_INLINE void gemv_rows(const RowsOperand<typename F::Element, kRows>& x, const WeightRows<S>& weights,
                                 int64_t k_size, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  using Along = AlongK<S, F>;
  constexpr int n = Vec<T>::kLanes, kGroup = int(min(n, kVectorRegisters > 16 ? 8 : 8 / kRows));
  Raw sum[kRows][n];
#pragma GCC unroll 16
  for (int first = 0; first < n; first += kGroup) {
    Raw part[kRows][kGroup];
    const S* w[kGroup];
#pragma GCC unroll 8
    for (int j = 0; j < kGroup; ++j) {
      w[j] = weights[first + j];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) part[r][j] = Raw{};
    }
    int64_t k = 0;
    const auto add = [&](int64_t count) {
      typename Along::Elements xk[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) xk[r] = Along::load_elements(x.row[r] + k, count);
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        const auto wk = Along::load_weights(w[j] + k, count);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) Along::multiply_add(part[r][j], xk[r], wk);
      }
    };
    for (; k + Along::kElements <= k_size; k += Along::kElements) add(Along::kElements);
    if (k < k_size) add(k_size - k);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) sum[r][first + j] = part[r][j];
  }
#pragma GCC unroll 2
  for (int r = 0; r < kRows; ++r) {
    transpose<T>(sum[r]);
    Raw total = load(tile.start + r * tile.start_stride).raw;
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) total += sum[r][j];
    store(tile.data + r * tile.stride, Vec<T>(total));
  }
}

// A vector of C for each of `rows` rows, known at run time; kRows of them side by side while there are.
template <class S, class F, int kRows = kGemvRows, class Rows>
SEQKERNELS_INLINE void gemv(int64_t rows, const Rows& operand, const WeightRows<S>& weights, int64_t k_size,
                            const Tile<typename F::Sum>& tile, int64_t row = 0) {
  for (; row + kRows <= rows; row += kRows)
    gemv_rows<S, F, kRows>(operand.from(row).template make<kRows>(), weights, k_size, tile.from_row(row));
  if constexpr (kRows > 1) gemv<S, F, kRows - 1>(rows, operand, weights, k_size, tile, row);
}

}  // namespace seqkernels::SEQKERNELS_ISA
