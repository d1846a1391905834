// Partial sums of a product: where warps that share units leave them in shared memory, and how they are added up.
#pragma once
#include "product.cuh"

namespace seqkernels::cuda {

constexpr int kTileUnits = kTileRows;
static_assert(kThreads == kWarps * kWarpSize && kTileUnits == kUnitPadding);
// A warp's share of the pointwise part is counted in quarters of a tile: 32 units, one a lane.
static_assert(kQuarters == kTileUnits * kTileColumns / kWarpSize);

// They are [column][unit][tile] where one access takes all tiles of a unit, else [column][tile][unit]. The stride of a column is
// 4 mod 16, so that neither the MMA's result nor a quarter's columns meet in a bank.
template <int kTiles>
struct PartialSums {
  static constexpr int kTogether = kTiles == 4 ? 4 : 1;  // tiles
  static constexpr int kStride = kTiles * kTileUnits + 4;
  SEQKERNELS_DEVICE static constexpr int at(int column, int tile, int unit) {
    return column * kStride + tile * kTileUnits + unit * kTogether;
  }

  // Adds to the product of a unit what kSplits warps have of it, each `stride` behind the one before. All loads are in flight
  // at once.
  template <int kSplits>
  static SEQKERNELS_DEVICE void add_up(const float* partials, int stride, float (&product)[kTiles]) {
    using Together = Words<kTogether>;  // partial sums of one access
    Together words[kSplits][kTiles / kTogether];
    SEQKERNELS_UNROLL
    for (int split = 0; split < kSplits; ++split) {
      SEQKERNELS_UNROLL
      for (int tile = 0; tile < kTiles; tile += kTogether)
        words[split][tile / kTogether] =
            *reinterpret_cast<const Together*>(partials + split * stride + tile * kTileUnits);
    }
    SEQKERNELS_UNROLL
    for (int i = 0; i < kSplits * kTiles; ++i) {
      const int split = i / kTiles, tile = i % kTiles;
      product[tile] += float_of(words[split][tile / kTogether].word[tile % kTogether]);
    }
  }
};

}  // namespace seqkernels::cuda
