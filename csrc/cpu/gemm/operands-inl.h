// What a register kernel reads and writes: rows of A, and a tile of C. Compiled once per ISA.
//
// A is handed over as something that makes an operand of n rows, n being known at compile time: `a.make<n>()`.
//
// Type parameters: those of formats-inl.h.
#pragma once
#include "tile_shapes-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// The first way to read A: rows given by pointers, each contiguous in K.
template <class E, int kRows>
struct RowsOperand {
  const E* row[kRows];
  template <class F>
  SEQKERNELS_INLINE typename F::Raw spread(int r, int64_t k) const {
    return F::spread(row[r], k);
  }
};
// The other way to read A: the columns of a [K][rows] block of packs.
template <class T, int kRows>
struct ColumnsOperand {
  const T* block;  // [K][kRows]
  template <class F>
  SEQKERNELS_INLINE typename F::Raw spread(int r, int64_t k) const {
    return F::spread(block, k * kRows + r);
  }
};

// Rows of A that lie anywhere.
template <class E>
struct RowPointers {
  const E* const* rows;
  RowPointers from(int64_t row) const { return {rows + row}; }
  template <int kRows>
  SEQKERNELS_INLINE RowsOperand<E, kRows> make() const {
    RowsOperand<E, kRows> a;
    for (int r = 0; r < kRows; ++r) a.row[r] = rows[r];
    return a;
  }
};

// Rows of A that lie at equal distances.
template <class E>
struct EvenRows {
  const E* data;
  int64_t stride;
  EvenRows from(int64_t row) const { return {data + row * stride, stride}; }
  template <int kRows>
  SEQKERNELS_INLINE RowsOperand<E, kRows> make() const {
    RowsOperand<E, kRows> a;
    for (int r = 0; r < kRows; ++r) a.row[r] = data + r * stride;
    return a;
  }
};

// Rows of A that are the columns of a packed block.
template <class T>
struct PackedColumns {
  const T* block;
  template <int kRows>
  SEQKERNELS_INLINE ColumnsOperand<T, kRows> make() const {
    return {block};
  }
};

// A tile of C and what the product is added to: zero, one row for all (a bias), or C itself.
template <class T>
struct Tile {
  T* data;  // [rows][stride]
  int64_t stride;
  const T* start;  // [rows][start_stride]
  int64_t start_stride;

  static Tile from_zero(T* data, int64_t stride) {
    alignas(64) static constexpr T kZeros[kPanelVectors * Vec<T>::kLanes] = {};
    return {data, stride, kZeros, 0};
  }
  static Tile from_bias(T* data, int64_t stride, const T* bias) { return {data, stride, bias, 0}; }
  static Tile accumulate(T* data, int64_t stride) { return {data, stride, data, stride}; }

  // The part of the tile from `column` on, and from `row` on.
  Tile from(int64_t column) const { return {data + column, stride, start + column, start_stride}; }
  Tile from_row(int64_t row) const { return {data + row * stride, stride, start + row * start_stride, start_stride}; }
};

}  // namespace seqkernels::SEQKERNELS_ISA
