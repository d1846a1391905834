// The CUDA kernels of each cell and dtype, as the host sees them.
#pragma once
#include <cstdint>

#include "problem.h"

namespace seqkernels::cuda {

constexpr int most_stages() {
  int most = 1;
  for (const CellInfo& cell : kCellInfos.of) most = cell.stages > most ? cell.stages : most;
  return most;
}
constexpr int kMostStages = most_stages();

// The product of a stage, with its rows of W_hh or, going back, of these transposed, and what belongs to it.
struct StageKernels {
  int first_gate;      // whose rows are the first
  bool is_projection;  // whether it is with W_hr instead
  int tiles;           // row blocks of the matrix that a unit's product has
  int published;       // values of a unit that the product reads
  bool makes_outputs;  // whether its units are those of h, where h is a projection, or hidden ones
  bool reads_outputs;  // whether those are that it reads

  // The iteration with this product: (Problem, StepBuffers, int64_t iteration), of a normalised cell (.., Norms) too.
  const void* stepwise;
  // rows.cuh: (Shape, gates, output, h0, cells, c0, operands, Transition); null of the state before
  const void* operands;

  // Of persistent kernels of each form.
  struct Depth {
    int resident_chunks;  // of each warp, in registers
    int chunks_ahead;     // of a column tile, whose loads a warp has in flight at once
  } depth[int(Form::kCount)];
};

// One pass of one cell and dtype.
struct PassKernels {
  int stages;
  StageKernels stage[kMostStages];
  bool is_backward;
  int chunk;  // units of K in a chunk: members * unit_groups * 16 must be a multiple

  // The stage of an iteration's product (pointwise.cuh).
  int stage_of(int64_t iteration) const {
    const int n = static_cast<int>((iteration + stages - 1) % stages);
    return is_backward ? stages - 1 - n : n;
  }
  // The most of a figure that any stage has.
  int most(int StageKernels::* figure) const {
    int most = 0;
    for (int s = 0; s < stages; ++s) most = stage[s].*figure > most ? stage[s].*figure : most;
    return most;
  }

  // The kernel (Problem, Partition, SharedLayout) for a launch that is cut so, or null; itself null where there are none.
  const void* (*persistent)(const Partition&) = nullptr;
  SharedLayout (*layout)(const Partition&, int outputs) = nullptr;
  bool on_tensor_cores = false;  // its products; or by FFMA, float32 as it is
  int column_tiles = 0;          // of 8 columns, that a warp takes in one pass over K at most
  int block_tiles = 0;           // unit groups times column tiles of a block in one such pass at most

  // normalized.cuh: (Shape, NormGradients); null where the cell is not normalised. If it is, a step has one stage here,
  // and a stepwise launch a block for each row.
  const void* norm_gradients = nullptr;
  bool is_normalized() const { return norm_gradients != nullptr; }
};

struct CellKernels {
  PassKernels forward, backward;

  // In the place of those without what happens between steps, which stepwise kernels always have.
  void set_persistent(const CellKernels& with_transition) {
    for (PassKernels CellKernels::* const pass : {&CellKernels::forward, &CellKernels::backward})
      (this->*pass).persistent = (with_transition.*pass).persistent,
      (this->*pass).layout = (with_transition.*pass).layout;
  }
};

// `tf32`: whether persistent kernels may multiply float32 as TF32; nothing to other dtypes. Compiled for each cell of the
// registry by itself: cell.cu. In cell_transition.cu, the persistent kernels with what happens between steps, and no others.
template <class Cell>
const CellKernels& kernels_of(DType dtype, bool tf32);
template <class Cell>
const CellKernels& transition_kernels_of(DType dtype, bool tf32);

// The one or the other's.
const CellKernels& kernels_of(CellKind cell, DType dtype, bool tf32, bool has_transition = false);

// Of rows.cuh.
struct RowKernels {
  const void* previous_states;  // (Shape, output, h0, previous, Transition)
  const void* rows_of_steps;    // (Shape, x, copy, Transition)
};
RowKernels row_kernels(DType dtype);
const void* write_offsets_kernel();  // (OffsetsPart, offsets)

}  // namespace seqkernels::cuda
