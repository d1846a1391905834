// How a product is cut: the width of its panels, the heights of its register tiles. Compiled once per ISA.
//
// Type parameter F: an operand format (formats-inl.h).
#pragma once
#include "tile_registers-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// The width of a panel, and of a part of a tile, in vectors. With 16 registers a tile of 3 rows and 4 vectors would
// read B twice as often as one of 6 rows and 2 vectors.
constexpr int kPanelVectors = kVectorRegisters > 16 ? 4 : 2, kPartVectors = 2;

// Vectors of one product: a panel as wide as several of those above lies as that many of them, one after the other.
constexpr int product_vectors(int panel_vectors) {
  return panel_vectors % kPanelVectors == 0 ? kPanelVectors : panel_vectors;
}

// Most rows of a register tile that is `vectors` wide: accumulators, one operand's registers and one spare.
constexpr int max_rows(int vectors) {
  int rows = 1;
  while (rows < 8 && (rows + 1) * vectors + min(rows + 1, vectors) + 1 <= kVectorRegisters) ++rows;
  return rows;
}

// Most rows of a tile `vectors` wide that may take the columns in two parts, one after the other, half as wide. The
// parts read A twice, where two lower tiles would read B twice, which is further away. In tile registers that is two by
// two of them.
template <class F>
constexpr int max_rows_in_parts(int vectors) {
  return F::kInTiles ? 2 * TileRegisters::kRows : max_rows(vectors > kPartVectors ? kPartVectors : vectors);
}

// With fewer rows, a product in tile registers waits for their loads longer than one in vector registers takes.
constexpr int kMinTileRegisterRows = 3;

// Tiles of nearly equal height, none above `most`, that cover some rows; the higher ones first. A division takes some
// hundred cycles, so there is one for all of them.
class RowTiles {
 public:
  SEQKERNELS_INLINE RowTiles(int64_t rows, int most)
      : count_(ceil_div(rows, most)), height_(count_ > 0 ? rows / count_ : 0), higher_(rows - count_ * height_) {}

  SEQKERNELS_INLINE int64_t count() const { return count_; }
  SEQKERNELS_INLINE Range operator[](int64_t tile) const {
    const int64_t begin = tile * height_ + min(tile, higher_);
    return {begin, begin + height_ + (tile < higher_)};
  }

 private:
  int64_t count_, height_, higher_;
};

// The tiles that cover the rows of a product `vectors` wide: one in parts, if that is enough.
template <class F>
SEQKERNELS_INLINE RowTiles row_tiles(int64_t rows, int vectors) {
  const int in_parts = max_rows_in_parts<F>(vectors);
  return {rows, rows <= in_parts || F::kInTiles ? in_parts : max_rows(vectors)};
}

}  // namespace seqkernels::SEQKERNELS_ISA
