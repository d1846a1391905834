// The small-M path for rows of x that fill vectors: C^T = W x^T, with W read where it lies. Compiled once per ISA.
//
// Here W is the left operand, whose rows may lie anywhere, and what is packed is x, which is small. A product of few rows
// spares the packing of its weights thereby, and reads them once. The tile of C^T is transposed at the end.
//
// Type parameters: those of formats-inl.h, where W and x have the same element type; Rows is RowPointers or EvenRows.
#pragma once
#include "gemm-inl.h"
#include "gemv-inl.h"
#include "packing-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// So many rows of x are one operand: as many columns of x^T as a panel has.
template <class F>
constexpr int64_t kMaxColumns = kPanelVectors * Vec<typename F::Sum>::kLanes;

// Whether so many rows are worth it: in vectors, an eighth of them may be padding; in tile registers, whose time is the
// same for all numbers of rows, see kMinTileRegisterRows.
template <class F>
constexpr bool fill_columns(int64_t rows) {
  if (F::kInTiles) return rows >= kMinTileRegisterRows;
  return 8 * rows >= 7 * round_up(rows, Vec<typename F::Sum>::kLanes);
}

// The fewest for which that holds.
template <class F>
constexpr int64_t kMinColumns = F::kInTiles ? kMinTileRegisterRows : ceil_div(7 * Vec<typename F::Sum>::kLanes, 8);

// Weights of more bytes than this are read where they lie: what packing them would write and read again is not in L2.
// Tile registers multiply so fast that it would be most of the time even there.
template <class F>
constexpr int64_t kColumnsBytes = F::kInTiles ? 1 << 18 : 1 << 21;

// Numbers of C's type that x^T takes, packed.
template <class F>
constexpr int64_t columns_size(int64_t rows, int64_t k_size) {
  return round_up(rows, Vec<typename F::Sum>::kLanes) * packs<F>(k_size);
}

// The vectors [vectors) of x^T of some rows: [packs of K][rows, in whole vectors].
template <class F, class Rows>
void pack_columns(int64_t rows, Range vectors, const Rows& x, int64_t k_size, typename F::Sum* packed) {
  using E = typename F::Element;
  constexpr int kLanes = Vec<typename F::Sum>::kLanes;
  for (int64_t first = vectors.begin * kLanes; first < vectors.end * kLanes; first += kLanes) {
    const auto row = [&](int j) -> const E* {
      return first + j < rows ? x.from(first + j).template make<1>().row[0] : nullptr;
    };
    pack_transposed<E, F>(row, k_size, packed + first, round_up(rows, kLanes));
  }
}

// What K has beyond whole steps of the format, of some rows of W: copied, for zeros to follow.
template <class F>
struct LastStep {
  using E = typename F::Element;
  static constexpr int kElements = F::kKStep * F::kPack;
  alignas(64) E rows[Vec<typename F::Sum>::kLanes * kElements];

  LastStep(const EvenRows<E>& w, int64_t units, int64_t k_begin, int64_t k_size) : rows{} {
    for (int64_t u = 0; u < units; ++u)
      __builtin_memcpy(rows + u * kElements, w.data + u * w.stride + k_begin, size_t(k_size - k_begin) * sizeof(E));
  }
  EvenRows<E> operand() const { return {rows, kElements}; }
};

// C = start + x W^T for a vector of columns of C, the `units` rows of W from w on; x^T as pack_columns leaves it.
template <class F>
void gemm_columns(int64_t rows, const typename F::Sum* x, const EvenRows<typename F::Element>& w, int64_t units,
                  int64_t k_size, const Tile<typename F::Sum>& tile) {
  using T = typename F::Sum;
  using V = Vec<T>;
  constexpr int kLanes = V::kLanes, kStep = LastStep<F>::kElements;
  const int vectors = int(ceil_div(rows, kLanes));
  const int64_t width = vectors * kLanes, whole = k_size / kStep * kStep, whole_packs = whole / F::kPack;
  alignas(64) T transposed[kLanes * kMaxColumns<F>];  // [units][rows of x]
  const auto product = [&](const EvenRows<typename F::Element>& a, const T* b, int64_t k_packs, bool accumulates) {
    const RowTiles tiles = row_tiles<F>(units, vectors);
    for (int64_t i = 0; i < tiles.count(); ++i) {
      T* const c = transposed + tiles[i].begin * width;
      gemm<F>(tiles[i].size(), vectors, a.from(tiles[i].begin), b, width, k_packs,
              accumulates ? Tile<T>::accumulate(c, width) : Tile<T>::from_zero(c, width));
    }
  };
  product(w, x, whole_packs, false);
  if (whole < k_size) product(LastStep<F>(w, units, whole, k_size).operand(), x + whole_packs * width, F::kKStep, true);
  for (int64_t i = units * width; i < kLanes * width; ++i) transposed[i] = 0;

  for (int64_t first = 0; first < rows; first += kLanes) {
    typename V::Raw square[kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < kLanes; ++j) square[j] = load(transposed + j * width + first).raw;
    transpose<T>(square);
    for (int64_t r = first; r < min(first + kLanes, rows); ++r)
      store(tile.data + r * tile.stride, load(tile.start + r * tile.start_stride) + V(square[r - first]));
  }
}

}  // namespace seqkernels::SEQKERNELS_ISA
