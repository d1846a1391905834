// Which units and columns of a block are a lane's in the pointwise part of a persistent kernel.
#pragma once
#include "partial_sums.cuh"

namespace seqkernels::cuda {

// A pass over the columns takes 1, 2 or 4 tiles of them, kTiles always, or, if that is 0, as many as there are. A lane has one
// unit and column of every kWarps-th quarter of the pass, that is, of every second tile. Tiles are counted columns first. So with
// four tiles of columns, two quarters each have the same units, and columns kApart from one another; else all have the same
// column, and units `next` apart.
template <int kTiles, int kMaxColumnTiles>
struct Lane {
  static constexpr int kApart = 2 * kTileColumns;
  int first;            // column of the pass, within the group
  int tiles, quarters;  // of the pass
  int unit, column;     // of the first quarter, within the block, within the group
  int next;

  SEQKERNELS_DEVICE Lane(const Partition& part, int warp, int first) : first(first), tiles(kTiles > 0 ? kTiles : 1) {
    if constexpr (kTiles == 0 && kMaxColumnTiles > 1)
      tiles = tiles_of_pass(part, (part.columns - first) / kTileColumns);
    quarters = part.unit_groups * tiles * kQuarters;
    const int tile = warp / kQuarters, doublings = tiles / 2;
    unit = (tile >> doublings) * kTileUnits + lane_index() % kTileUnits;
    column = first + (tile & (tiles - 1)) * kTileColumns + warp % kQuarters + kQuarters * (lane_index() / kTileUnits);
    next = 2 * kTileUnits >> doublings;
  }

  SEQKERNELS_DEVICE bool is_wide() const { return kTiles == 0 && kMaxColumnTiles == 4 && tiles == 4; }
  // From the first quarter to quarter n.
  SEQKERNELS_DEVICE int units_to(int n) const { return is_wide() ? n / 2 * kTileUnits : n * next; }
  SEQKERNELS_DEVICE int columns_to(int n) const { return is_wide() ? n % 2 * kApart : 0; }
};

}  // namespace seqkernels::cuda
