// What a persistent kernel has of each stage's product, and where a block has what in shared memory.
#pragma once
#include <algorithm>
#include <utility>

#include "partial_sums.cuh"
#include "pointwise.cuh"
#include "slice.cuh"

namespace seqkernels::cuda {

// Units that a stage makes, for which a block has room.
template <class Cell, int stage>
SEQKERNELS_HOST_DEVICE int units_of_block(const Partition& part, const SharedLayout& layout) {
  return StageOf<Cell, stage>::kIsProjection ? layout.outputs : part.units_of_block();
}

// Units of h, where it is a projection, that each block of a group makes: pairs, which share a word, and whole chunks together.
// All blocks have as many. One that published nothing after a stage would let others go on who then reset what it still reads.
inline int outputs_of_block(const Partition& part, int outputs, int chunk) {
  int share = (outputs + part.members - 1) / part.members;
  for (share += share % 2; share * part.members % chunk != 0;) share += 2;
  return share;
}

// The product of a stage. A warp has a slice of the weights of each stage. The only stage has as many chunks of it in
// registers as its product can do with; several stages share the registers by their gates, in fours of tiles or, by FFMA,
// in twos.
template <class Pass, class Operand, int stage>
struct PersistentProduct {
  using Iteration = typename Pass::template Iteration<stage>;
  using Product = cuda::Product<Operand, Iteration::kTiles>;
  using Sums = PartialSums<Iteration::kTiles>;
  static constexpr int kGates = Iteration::kTiles * Iteration::kReads;
  static constexpr int kAllGates = cells::first_gate<typename Pass::Cell>(Pass::kStages);
  static constexpr int kPart = Product::kSharedTiles * kGates / kAllGates;
  static constexpr int kShare = Product::kOnTensorCores ? (kPart + 2) / 4 * 4 : kPart / 2 * 2;
  static constexpr int kResident = Pass::kStages == 1 ? Product::kResident : kShare / Iteration::kTiles;
  using Weights = Slice<Operand, Iteration::kTiles, kResident>;
  static_assert(kResident > 0);
  static_assert(Weights::kStage <= 2 * kTileColumns * Sums::kStride);  // weights are staged where partial sums will be

  // Chunks of K, of the group and of a warp.
  SEQKERNELS_HOST_DEVICE static int chunks(const Partition& part, const SharedLayout& layout) {
    return Iteration::kReads * units_read(part, layout) / Weights::kChunk;
  }
  SEQKERNELS_HOST_DEVICE static int chunks_per_warp(const Partition& part, const SharedLayout& layout) {
    return (chunks(part, layout) + part.splits - 1) / part.splits;
  }
  // Words of one warp's weights in shared memory.
  SEQKERNELS_HOST_DEVICE static int words(const Partition& part, const SharedLayout& layout) {
    return Weights::shared_words(chunks_per_warp(part, layout));
  }
  // Units of the group that have published what the product reads.
  SEQKERNELS_HOST_DEVICE static int units_read(const Partition& part, const SharedLayout& layout) {
    return part.members * units_of_block<typename Pass::Cell, Iteration::kPublisher>(part, layout);
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

  typename PersistentProduct<Pass, Operand, stage>::Weights own;
  Slices<Pass, Operand, stage + 1> others;
};
template <class Pass, class Operand, int stage>
struct Slices<Pass, Operand, stage, false> {};

// Unit groups times column tiles of a block in one pass over K, that the products of all stages can take.
template <class Pass, class Operand, int... stages>
constexpr int max_tiles(std::integer_sequence<int, stages...>) {
  return std::min({PersistentProduct<Pass, Operand, stages>::Product::kMaxTiles...});
}
template <class Pass>
using StagesOf = std::make_integer_sequence<int, Pass::kStages>;

template <class Pass, class Operand, int... stages>
SharedLayout layout_of(const Partition& part, int outputs, std::integer_sequence<int, stages...>) {
  const auto words = [](size_t bytes) { return static_cast<int>((bytes + 3) / 4); };
  SharedLayout layout{};
  if (Pass::Cell::kIsProjected)
    layout.outputs = outputs_of_block(part, outputs, PersistentProduct<Pass, Operand, 0>::Weights::kChunk);
  layout.chunks = std::max({PersistentProduct<Pass, Operand, stages>::chunks(part, layout)...});
  layout.chunks_per_warp = std::max({PersistentProduct<Pass, Operand, stages>::chunks_per_warp(part, layout)...});
  layout.slice = (PersistentProduct<Pass, Operand, stages>::words(part, layout) + ...);
  // Where sums will be, products stage vectors.
  layout.partial =
      std::max({part.column_tiles * kTileColumns * PersistentProduct<Pass, Operand, stages>::Sums::kStride...,
                PersistentProduct<Pass, Operand, stages>::Weights::kProductStage...});
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
SharedLayout layout_for(const Partition& part, int outputs) {
  return layout_of<Pass, Operand>(part, outputs, StagesOf<Pass>());
}

}  // namespace seqkernels::cuda
