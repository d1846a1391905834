// How operands are packed for a product: panels of B, as wide as a register tile, each in the order of reading. Compiled once per
// ISA.
#pragma once
#include "tile_shapes-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// One panel column block of `lanes` columns from rows of a row-major matrix of `depth` elements: out[k * width + j] is word k
// of row(j), which is null for padding.
template <class S, class F, class Row>
SEQKERNELS_INLINE void pack_transposed(const Row& row, int64_t depth, typename F::Sum* out, int64_t width) {
  using T = typename F::Sum;
  constexpr int n = Vec<T>::kLanes;
  for (int64_t k = 0; k < words<F>(depth); k += n) {
    typename Vec<T>::Raw square[n];
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) {
      const S* source = row(j);
      square[j] = source ? F::load_words(source + k * F::kPerWord, depth - k * F::kPerWord) : typename F::Raw{};
    }
    transpose<T>(square);
    const int64_t steps = smaller(n, words<F>(depth) - k);
    for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * width, Vec<T>(square[i]));
  }
}

// Columns of row k of a matrix, padded with zeros to `vectors` vectors, into its words of packed[depth][vectors]. The rows
// that share words are packed in order; where the last one is alone, the rest is zero.
template <class S, class F>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, int64_t columns, int vectors, typename F::Sum* packed) {
  constexpr int n = Vec<typename F::Sum>::kLanes;
  typename F::Sum* const out = packed + k / F::kPerWord * vectors * n;
  for (int v = 0; v < vectors; ++v)
    F::store_part_of_words(out + v * n, int(k % F::kPerWord), row + v * n, columns - v * n);
}

// Words [begin, end) of a packed depth whose rows are not there.
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range words, int64_t width, T* packed) {
  for (int64_t i = words.begin * width; i < words.end * width; ++i) packed[i] = 0;
}

// Panels over `columns` columns: how many, and each one's width and place.
template <class T>
struct Panels {
  static constexpr int64_t kWidth = kPanelVectors * Vec<T>::kLanes;
  int64_t columns;

  int64_t count() const { return ceil_div(columns, kWidth); }
  int vectors(int64_t panel) const {
    return int(smaller(kPanelVectors, ceil_div(columns - panel * kWidth, Vec<T>::kLanes)));
  }
  int64_t width(int64_t panel) const { return vectors(panel) * Vec<T>::kLanes; }
  int64_t valid(int64_t panel) const { return smaller(kWidth, columns - panel * kWidth); }
  int64_t size(int64_t depth) const { return count() * kWidth * depth; }
  template <class P>
  P* at(P* packed, int64_t panel, int64_t depth) const {
    return packed + panel * kWidth * depth;
  }
};

// Row k of a matrix into all its panels of `depth` words.
template <class S, class F, class T = typename F::Sum>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, const Panels<T>& panels, int64_t depth, T* packed) {
  constexpr int n = Vec<T>::kLanes;
  constexpr int64_t kWidth = Panels<T>::kWidth;
  const int64_t whole = panels.columns / kWidth;
  T* out = packed + k / F::kPerWord * kWidth;
  for (int64_t panel = 0; panel < whole; ++panel, row += kWidth, out += kWidth * depth)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) F::store_part_of_words(out + v * n, int(k % F::kPerWord), row + v * n, n);
  if (whole < panels.count())
    pack_row<S, F>(row, k, panels.valid(whole), panels.vectors(whole), panels.at(packed, whole, depth));
}

// The words [begin, end) of the packed depth of all panels, whose rows are not there.
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range words, const Panels<T>& panels, int64_t depth, T* packed) {
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    pack_zeros(words, panels.width(panel), panels.at(packed, panel, depth));
}

}  // namespace seqkernels::SEQKERNELS_ISA
