// How the rows of a product are cut into register tiles. Compiled once per ISA; whole numbers alone.
#pragma once
#include "../ranges-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// Most rows of a register tile, and of one that may take its columns in parts, one after the other.
struct TileRows {
  int whole, in_parts;
  // The highest tile for so many rows: one in parts, if that is enough.
  SEQKERNELS_INLINE constexpr int most(int64_t rows) const { return rows <= in_parts ? in_parts : whole; }
};

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

}  // namespace seqkernels::SEQKERNELS_ISA
