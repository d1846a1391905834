// What a persistent kernel has of each stage's product, and where a block has what in shared memory.
#pragma once
#include <algorithm>
#include <utility>

#include "pointwise.cuh"
#include "slice.cuh"

namespace seqkernels::cuda {

constexpr int kTileUnits = kTileRows;
static_assert(kThreads == kWarps * kWarpSize && kTileUnits == kUnitPadding);
// A warp's share of the pointwise part is counted in quarters of a tile: 32 units, one a lane.
static_assert(kQuarters == kTileUnits * kTileColumns / kWarpSize);

// Partial sums are [column][unit][tile] where one access takes all tiles of a unit, else [column][tile][unit]. The stride of a
// column is 4 mod 16, so that neither the MMA's result nor a quarter's columns meet in a bank.
template <int kTiles>
struct PartialSums {
  static constexpr int kTogether = kTiles == 4 ? 4 : 1;  // tiles
  static constexpr int kStride = kTiles * kTileUnits + 4;
  SEQKERNELS_DEVICE static constexpr int at(int column, int tile, int unit) {
    return column * kStride + tile * kTileUnits + unit * kTogether;
  }
};

// The product of a stage. A warp has a slice of the weights of each stage. The only stage has as many chunks of it in registers
// as its product can do with; several stages share the registers in whole rounds of loads, by the chunks that they have.
template <class Pass, class Operand, int stage>
struct StageProduct {
  using Iteration = typename Pass::template Iteration<stage>;
  using Product = cuda::Product<Operand, Iteration::kTiles>;
  using Sums = PartialSums<Iteration::kTiles>;
  static constexpr int kTileChunks = 16, kRound = 4;  // kTiles tiles of a chunk take 8 registers each
  static constexpr int kShare = kTileChunks * Iteration::kReads / Pass::Cell::kGates / kRound * kRound;
  static constexpr int kResident = Pass::kStages == 1 ? Product::kResident : kShare;
  using Weights = Slice<Operand, Iteration::kTiles, kResident>;
  static_assert(kResident > 0);
  static_assert(Weights::kStage <= 2 * kTileColumns * Sums::kStride);  // weights are staged where partial sums will be

  // Chunks of K, of the group and of a warp.
  SEQKERNELS_HOST_DEVICE static int chunks(const Partition& part) {
    return Iteration::kReads * part.units() / Weights::kChunk;
  }
  SEQKERNELS_HOST_DEVICE static int chunks_per_warp(const Partition& part) {
    return (chunks(part) + part.splits - 1) / part.splits;
  }
  // Words of one warp's weights in shared memory.
  SEQKERNELS_HOST_DEVICE static int words(const Partition& part) {
    return Weights::shared_words(chunks_per_warp(part));
  }
};

// One slice for each stage.
template <class Pass, class Operand, int stage = 0, bool exists = (stage < Pass::kStages)>
struct Slices {
  template <int wanted>
  SEQKERNELS_DEVICE auto& of() {
    if constexpr (wanted == stage)
      return own;
    else
      return others.template of<wanted>();
  }

  typename StageProduct<Pass, Operand, stage>::Weights own;
  Slices<Pass, Operand, stage + 1> others;
};
template <class Pass, class Operand, int stage>
struct Slices<Pass, Operand, stage, false> {};

// Unit groups times column tiles of a block in one pass over K, that the products of all stages can take.
template <class Pass, class Operand, int... stages>
constexpr int max_tiles(std::integer_sequence<int, stages...>) {
  return std::min({StageProduct<Pass, Operand, stages>::Product::kMaxTiles...});
}
template <class Pass>
using StagesOf = std::make_integer_sequence<int, Pass::kStages>;

template <class Pass, class Operand, int... stages>
SharedLayout layout_of(const Partition& part, std::integer_sequence<int, stages...>) {
  const auto words = [](size_t bytes) { return static_cast<int>((bytes + 3) / 4); };
  SharedLayout layout{};
  layout.chunks = std::max({StageProduct<Pass, Operand, stages>::chunks(part)...});
  layout.chunks_per_warp = std::max({StageProduct<Pass, Operand, stages>::chunks_per_warp(part)...});
  layout.slice = (StageProduct<Pass, Operand, stages>::words(part) + ...);
  // Where sums will be, products stage vectors.
  layout.partial = std::max({part.column_tiles * kTileColumns * StageProduct<Pass, Operand, stages>::Sums::kStride...,
                             StageProduct<Pass, Operand, stages>::Weights::kProductStage...});
  layout.slot = layout.chunks * part.columns * kChunkWords;
  layout.reset = (part.ring ? layout.slot / part.members : layout.slot) / 4;
  layout.weights = 2 * kWarps * layout.partial;
  layout.states = layout.weights + kWarps * layout.slice;
  layout.biases = layout.states + part.units_of_block() * part.columns * words(sizeof(typename Pass::State));
  layout.ring = (layout.biases + part.units_of_block() * words(sizeof(typename Pass::Biases)) + 3) / 4 * 4;
  layout.total = layout.ring + (part.ring ? 0 : kRingSlots * layout.slot);
  return layout;
}
template <class Pass, class Operand>
SharedLayout layout_for(const Partition& part) {
  return layout_of<Pass, Operand>(part, StagesOf<Pass>());
}

}  // namespace seqkernels::cuda
