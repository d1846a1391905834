// How the members of a direction share its recurrence: by sequences, by hidden units, or by both.
//
// Compiled once per ISA, for the kernels choose on every call, from constants of an ISA and an operand format, and what
// they choose must not depend on which ISA's copy of an inline function the linker keeps. Nothing here knows vectors,
// threads or memory, though. So a file that gives itself a SEQKERNELS_ISA of its own can plan for any ISA, and print and
// test what every split would cost.
//
// Type parameter Limits: ProductLimits, or a struct of the same members whose numbers are constants (FormatLimits in
// sequence-inl.h).
#pragma once
#include "ranges-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// The members of one direction's recurrence: batch_parts groups of unit_parts members each. Members beyond
// batch_parts * unit_parts only take part in the matrix products.
struct Split {
  int batch_parts, unit_parts;
};

// What an ISA and an operand format make of a product.
struct ProductLimits {
  int vector_bytes;
  int multiply_adds;                  // of a vector, in a cycle
  int rows_lost;                      // a tile of n rows takes as long as n and these would at that rate
  int tile_rows, tile_rows_in_parts;  // most rows of a tile, and of one that takes its columns in parts
  // How many tiles cover so many rows: one in parts, if that is enough.
  SEQKERNELS_INLINE int64_t tiles(int64_t rows) const {
    return ceil_div(rows, rows <= tile_rows_in_parts ? tile_rows_in_parts : tile_rows);
  }
};

struct SplitRequest {
  int members;
  int64_t batch;
  int64_t panels;
  int vectors;       // of a panel
  int64_t k_packs;   // K of the product, in packs
  int gates;         // of a unit, which the cell makes or reads
  int barriers = 1;  // where members split by units
};

// What a member's part of one stage of a step takes, in cycles of a server core.
struct StepCost {
  static constexpr double kBarrierCycles = 1000;
  double arithmetic;  // multiply-adds and cells
  double stream;      // reading the member's panels
  int barriers;
  // About half of what takes less is hidden behind what takes more.
  SEQKERNELS_INLINE double cycles() const {
    return (arithmetic > stream ? arithmetic + stream / 2 : stream + arithmetic / 2) + barriers * kBarrierCycles;
  }
};

// Half a panel vector a cycle comes from L2, an eighth from beyond it.
template <class Limits>
SEQKERNELS_INLINE StepCost step_cost(const Limits& limits, const SplitRequest& request, Split split) {
  constexpr double kL2Bytes = 1 << 19, kL2BytesPerCycle = 32, kL3BytesPerCycle = 8, kPointwiseCycles = 30;
  const int64_t rows = ceil_div(request.batch, split.batch_parts), own = ceil_div(request.panels, split.unit_parts);
  const double per_pack = double(rows + limits.tiles(rows) * limits.rows_lost) * request.vectors / limits.multiply_adds;
  const double bytes = double(own) * request.vectors * limits.vector_bytes * request.k_packs;
  const double stream = bytes / (bytes <= kL2Bytes ? kL2BytesPerCycle : kL3BytesPerCycle);
  const double compute = double(own) * request.k_packs * per_pack;
  const double arithmetic = compute + double(own) * rows * request.gates * kPointwiseCycles;
  return {arithmetic, stream, split.unit_parts > 1 ? request.barriers : 0};
}

// The split whose step takes the fewest cycles, all its stages together; members and batch are those of the first one. Fewer
// parts of the units come first, then fewer of the batch, and what comes later must win by 2 %.
template <class Limits, int kStages>
SEQKERNELS_INLINE Split fastest_split(const Limits (&limits)[kStages], const SplitRequest (&requests)[kStages]) {
  const int members = requests[0].members;
  Split best{1, 1};
  double best_cost = 1e300;
  for (int unit_parts = 1; unit_parts <= members; ++unit_parts)
    for (int batch_parts = 1; batch_parts * unit_parts <= members; ++batch_parts) {
      double cost = 0;
      for (int i = 0; i < kStages; ++i) cost += step_cost(limits[i], requests[i], {batch_parts, unit_parts}).cycles();
      if (cost < best_cost * 0.98) best_cost = cost, best = {batch_parts, unit_parts};
    }
  return best;
}

}  // namespace seqkernels::SEQKERNELS_ISA
