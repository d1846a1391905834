// Products of few rows, with weights read where they lie. Compiled once per ISA.
#pragma once
#include "operands-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Rows of x that share the weights they are multiplied with.
constexpr int kDotRows = 2;

// Rows of a weight where they lie; beyond the last one, that again.
template <class S>
struct WeightRows {
  const S* first;
  int64_t stride, last;
  SEQKERNELS_INLINE const S* operator[](int64_t row) const { return first + smaller(row, last) * stride; }
};

// A vector of C, one number for each weight row: start + x w, for as few rows of x that packing would cost more than the
// product. Eight weight rows at a time are as many streams as the hardware prefetches well; eight sums hide the latency of the
// multiply-add.
template <class S, class F, int kRows>
SEQKERNELS_INLINE void dot_rows(const RowsOperand<typename F::Element, kRows>& x, const WeightRows<S>& weights,
                                int64_t depth, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  using Raw = typename F::Raw;
  using Depth = AlongDepth<S, F>;
  constexpr int n = Vec<T>::kLanes, kGroup = int(smaller(n, kVectorRegisters > 16 ? 8 : 8 / kRows));
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
      typename Depth::Elements xk[kRows];
#pragma GCC unroll 2
      for (int r = 0; r < kRows; ++r) xk[r] = Depth::load_elements(x.row[r] + k, count);
#pragma GCC unroll 8
      for (int j = 0; j < kGroup; ++j) {
        const auto wk = Depth::load_weights(w[j] + k, count);
#pragma GCC unroll 2
        for (int r = 0; r < kRows; ++r) Depth::multiply_add(part[r][j], xk[r], wk);
      }
    };
    for (; k + Depth::kElements <= depth; k += Depth::kElements) add(Depth::kElements);
    if (k < depth) add(depth - k);
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

// A vector of C for `rows` known at run time, kRows of them side by side while there are.
template <class S, class F, int kRows = kDotRows, class Rows>
SEQKERNELS_INLINE void dot(int64_t rows, const Rows& operand, const WeightRows<S>& weights, int64_t depth,
                           const Tile<typename F::Sum>& tile, int64_t row = 0) {
  for (; row + kRows <= rows; row += kRows)
    dot_rows<S, F, kRows>(operand.from(row).template make<kRows>(), weights, depth, tile.from_row(row));
  if constexpr (kRows > 1) dot<S, F, kRows - 1>(rows, operand, weights, depth, tile, row);
}

}  // namespace seqkernels::SEQKERNELS_ISA
