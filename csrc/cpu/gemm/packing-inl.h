// How operands are packed for a product: panels of B, as wide as a register tile, each in the order of reading.
// Compiled once per ISA.
//
// Type parameters: those of formats-inl.h. A packed K is counted in packs, [K / kPack][columns][kPack]: the VNNI
// layout.
#pragma once
#include "tile_shapes-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// One panel column block of `lanes` columns from rows of a row-major matrix of `k_size` elements: out[k * width + j] is
// pack k of row(j), which is null for padding.
template <class S, class F, class Row>
SEQKERNELS_INLINE void pack_transposed(const Row& row, int64_t k_size, typename F::Sum* out, int64_t width) {
  using T = typename F::Sum;
  constexpr int n = Vec<T>::kLanes;
  for (int64_t k = 0; k < packs<F>(k_size); k += n) {
    typename Vec<T>::Raw square[n];
#pragma GCC unroll 16
    for (int j = 0; j < n; ++j) {
      const S* source = row(j);
      square[j] = source ? F::load_packs(source + k * F::kPack, k_size - k * F::kPack) : typename F::Raw{};
    }
    transpose<T>(square);
    const int64_t steps = min(n, packs<F>(k_size) - k);
    for (int64_t i = 0; i < steps; ++i) store(out + (k + i) * width, Vec<T>(square[i]));
  }
}

// Columns of row k of a matrix, padded with zeros to `vectors` vectors, into its packs of packed[K][vectors]. The rows
// that share packs are packed in order; where the last one is alone, the rest is zero.
template <class S, class F>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, int64_t columns, int vectors, typename F::Sum* packed) {
  constexpr int n = Vec<typename F::Sum>::kLanes;
  typename F::Sum* const out = packed + k / F::kPack * vectors * n;
  for (int v = 0; v < vectors; ++v)
    F::store_part_of_packs(out + v * n, int(k % F::kPack), row + v * n, columns - v * n);
}

// The same for the rows of a pack at once: `rows` of them, fewer than F::kPack if the rest is zero, at distances of
// `stride`; row k is the first.
template <class S, class F>
SEQKERNELS_INLINE void pack_whole_packs(const S* first, int64_t stride, int64_t rows, int64_t k, int64_t columns,
                                        int vectors, typename F::Sum* packed) {
  constexpr int n = Vec<typename F::Sum>::kLanes;
  typename F::Sum* const out = packed + k / F::kPack * vectors * n;
  for (int v = 0; v < vectors; ++v) store(out + v * n, F::join_rows(first + v * n, stride, rows, columns - v * n));
}

// The packs [begin, end) of a packed K whose rows are not there.
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range packs, int64_t width, T* packed) {
  for (int64_t i = packs.begin * width; i < packs.end * width; ++i) packed[i] = 0;
}

// Panels over `columns` columns: how many, and each one's width and place.
template <class T>
struct Panels {
  static constexpr int64_t kWidth = kPanelVectors * Vec<T>::kLanes;
  int64_t columns;

  int64_t count() const { return ceil_div(columns, kWidth); }
  int vectors(int64_t panel) const {
    return int(min(kPanelVectors, ceil_div(columns - panel * kWidth, Vec<T>::kLanes)));
  }
  int64_t width(int64_t panel) const { return vectors(panel) * Vec<T>::kLanes; }
  int64_t valid(int64_t panel) const { return min(kWidth, columns - panel * kWidth); }
  int64_t size(int64_t k_packs) const { return count() * kWidth * k_packs; }
  template <class P>
  P* at(P* packed, int64_t panel, int64_t k_packs) const {
    return packed + panel * kWidth * k_packs;
  }
};

// Row k of a matrix into all its panels of `k_packs` packs.
template <class S, class F, class T = typename F::Sum>
SEQKERNELS_INLINE void pack_row(const S* row, int64_t k, const Panels<T>& panels, int64_t k_packs, T* packed) {
  constexpr int n = Vec<T>::kLanes;
  constexpr int64_t kWidth = Panels<T>::kWidth;
  const int64_t whole = panels.columns / kWidth;
  T* out = packed + k / F::kPack * kWidth;
  for (int64_t panel = 0; panel < whole; ++panel, row += kWidth, out += kWidth * k_packs)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) F::store_part_of_packs(out + v * n, int(k % F::kPack), row + v * n, n);
  if (whole < panels.count())
    pack_row<S, F>(row, k, panels.valid(whole), panels.vectors(whole), panels.at(packed, whole, k_packs));
}

// The rows of a pack of a matrix at once into all its panels; see above.
template <class S, class F, class T = typename F::Sum>
SEQKERNELS_INLINE void pack_whole_packs(const S* first, int64_t rows, int64_t k, const Panels<T>& panels,
                                        int64_t k_packs, T* packed) {
  constexpr int n = Vec<T>::kLanes;
  constexpr int64_t kWidth = Panels<T>::kWidth;
  const int64_t whole = panels.columns / kWidth;
  T* out = packed + k / F::kPack * kWidth;
  for (int64_t panel = 0; panel < whole; ++panel, first += kWidth, out += kWidth * k_packs)
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) store(out + v * n, F::join_rows(first + v * n, panels.columns, rows, n));
  if (whole < panels.count())
    pack_whole_packs<S, F>(first, panels.columns, rows, k, panels.valid(whole), panels.vectors(whole),
                           panels.at(packed, whole, k_packs));
}

// The packs [begin, end) of all panels whose rows are not there.
template <class T>
SEQKERNELS_INLINE void pack_zeros(Range packs, const Panels<T>& panels, int64_t k_packs, T* packed) {
  for (int64_t panel = 0; panel < panels.count(); ++panel)
    pack_zeros(packs, panels.width(panel), panels.at(packed, panel, k_packs));
}

}  // namespace seqkernels::SEQKERNELS_ISA
