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

// The product of a stage, in kernels of one form. A warp has a slice of
// the weights of each stage. The only stage has as many chunks of it in registers as its product can do with; several stages
// share the registers by their gates, in fours of tiles or, by FFMA, in twos.
template <class Pass, class Operand, Form form, int stage>
struct PersistentProduct {
  using Iteration = typename Pass::template Iteration<stage>;
  using Product = cuda::Product<Operand, Iteration::kTiles>;
  using Sums = PartialSums<Iteration::kTiles>;
  static constexpr int kGates = Iteration::kTiles * Iteration::kReads;
  static constexpr int kAllGates = cells::first_gate<typename Pass::Cell>(Pass::kStages);
  // Fewer where a warp may have several quarters, whose sums want registers, too.
  static constexpr bool kHasFewer = form == Form::kSeveral && Product::kOnTensorCores;
  static constexpr int kPart = (kHasFewer ? 2 : 3) * Product::kSharedTiles / 3 * kGates / kAllGates;
  static constexpr int kShare = Product::kOnTensorCores ? (kPart + 2) / 4 * 4 : kPart / 2 * 2;
  static constexpr bool kMayBeDeep = Pass::kStages == 1 && form == Form::kSeveral;
  static constexpr int kPlainResident = Pass::kStages > 1         ? kShare / Iteration::kTiles
                                        : form == Form::kTwoTeams ? Product::kResidentOfTeams
                                        : kMayBeDeep              ? Product::kResidentOfSeveral
                                                                  : Product::kResident;
  // What happens between steps wants some registers of those kernels that have none to spare. Not all: a warp that reads all
  // weights from shared memory has more of them in flight.
  static constexpr bool kIsFull = form == Form::kSeveral || !Product::kOnTensorCores;
  static constexpr int kFewer = !Pass::kHasTransition || !kIsFull ? 0 : Iteration::kTiles == 1 ? 3 : 2;
  static constexpr int kResident = std::max(kPlainResident - kFewer, std::min(kPlainResident, 1));
  static constexpr int kAhead = kMayBeDeep ? Product::kAheadOfSeveral : Product::kAhead;
  static constexpr int kMaxColumnTiles = kMayBeDeep ? Product::kMaxColumnTiles : std::min(Product::kMaxColumnTiles, 2);
  using Weights = Slice<Operand, Iteration::kTiles, kResident>;
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
template <class Pass, class Operand, Form form, int stage = 0, bool exists = (stage < Pass::kStages)>
struct Slices {
  template <int wanted>
  SEQKERNELS_DEVICE auto& of() {
    if constexpr (wanted == stage)
      return own;
    else
      return others.template of<wanted>();
  }

  typename PersistentProduct<Pass, Operand, form, stage>::Weights own;
  Slices<Pass, Operand, form, stage + 1> others;
};
template <class Pass, class Operand, Form form, int stage>
struct Slices<Pass, Operand, form, stage, false> {};

// Unit groups times column tiles of a block in one pass over K, that the products of all stages can take.
template <class Pass, class Operand, int... stages>
constexpr int max_tiles(std::integer_sequence<int, stages...>) {
  return std::min({PersistentProduct<Pass, Operand, Form::kOneQuarter, stages>::Product::kMaxTiles...});
}
// Column tiles that the products of all stages can take.
template <class Pass, class Operand, Form form, int... stages>
constexpr int max_column_tiles(std::integer_sequence<int, stages...>) {
  return std::min({PersistentProduct<Pass, Operand, form, stages>::kMaxColumnTiles...});
}
// Words of one warp's partial sums, of so many column tiles. Where they will be, products stage vectors.
template <class Pass, class Operand, Form form, int... stages>
constexpr int partial_words(int column_tiles, std::integer_sequence<int, stages...>) {
  return std::max({column_tiles * kTileColumns * PersistentProduct<Pass, Operand, form, stages>::Sums::kStride...,
                   PersistentProduct<Pass, Operand, form, stages>::Weights::kProductStage...});
}
template <class Pass>
using StagesOf = std::make_integer_sequence<int, Pass::kStages>;

template <class Pass, class Operand, Form form, int... stages>
SharedLayout layout_of(const Partition& part, int outputs, std::integer_sequence<int, stages...>) {
  const auto words = [](size_t bytes) { return static_cast<int>((bytes + 3) / 4); };
  SharedLayout layout{};
  if (Pass::Cell::kIsProjected)
    layout.outputs = outputs_of_block(part, outputs, PersistentProduct<Pass, Operand, form, 0>::Weights::kChunk);
  layout.chunks = std::max({PersistentProduct<Pass, Operand, form, stages>::chunks(part, layout)...});
  layout.chunks_per_warp = std::max({PersistentProduct<Pass, Operand, form, stages>::chunks_per_warp(part, layout)...});
  layout.slice = (PersistentProduct<Pass, Operand, form, stages>::words(part, layout) + ...);
  layout.partial = partial_words<Pass, Operand, form>(part.column_tiles, StagesOf<Pass>());
  layout.slot = layout.chunks * part.columns * kChunkWords;
  layout.reset = (part.ring ? layout.slot / part.members : layout.slot) / 4;
  layout.weights = 2 * kWarps * layout.partial;  // of the last iteration and this one, or of two teams
  layout.states = layout.weights + kWarps * layout.slice;
  layout.biases = layout.states + part.units_of_block() * part.columns * words(sizeof(typename Pass::State));
  layout.ring = (layout.biases + part.units_of_block() * words(sizeof(typename Pass::Biases)) + 3) / 4 * 4;
  layout.total = layout.ring + (part.ring ? 0 : kRingSlots * layout.slot);
  return layout;
}
template <class Pass, class Operand>
SharedLayout layout_for(const Partition& part, int outputs) {
  switch (form_of(part)) {
    case Form::kOneQuarter:
      return layout_of<Pass, Operand, Form::kOneQuarter>(part, outputs, StagesOf<Pass>());
    case Form::kTwoTeams:
      return layout_of<Pass, Operand, Form::kTwoTeams>(part, outputs, StagesOf<Pass>());
    default:
      return layout_of<Pass, Operand, Form::kSeveral>(part, outputs, StagesOf<Pass>());
  }
}

}  // namespace seqkernels::cuda
