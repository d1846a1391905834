// The CUDA kernels of each cell and dtype, as the host sees them.
#pragma once
#include <cstdint>

#include "problem.h"

namespace seqkernels::cuda {

// One pass of one cell and dtype.
struct PassKernels {
  int tiles;      // row blocks of W_hh, or 1 of its transpose, that a unit's product has
  int published;  // values that a unit publishes
  int chunk;      // units of K in a chunk: members * unit_groups * 16 must be a multiple

  const void* stepwise;  // (Problem, StepBuffers, int64_t iteration)

  // The kernel (Problem, Partition, SharedLayout) for a launch that is cut so, or null; itself null where there are none.
  const void* (*persistent)(const Partition&) = nullptr;
  SharedLayout (*layout)(const Partition&) = nullptr;
  bool on_tensor_cores = false;  // its products; or by FFMA, float32 as it is
  int column_tiles = 0;          // of 8 columns, that a warp takes in one pass over K at most
  int block_tiles = 0;           // unit groups times column tiles of a block in one such pass at most
  int resident_chunks = 0;       // of each warp, in registers
  int chunks_ahead = 0;          // of a column tile, whose loads a warp has in flight at once
  bool is_backward = false;
};

struct CellKernels {
  PassKernels forward, backward;
};

// `tf32`: whether persistent kernels may multiply float32 as TF32; nothing to other dtypes. The first form is compiled for
// each cell of the registry by itself (cell.cu), the second finds it.
template <class Cell>
const CellKernels& kernels_of(DType dtype, bool tf32);
const CellKernels& kernels_of(CellKind cell, DType dtype, bool tf32);

// rows.cuh: (Shape, output, h0, previous), and (OffsetsPart, offsets)
const void* previous_states_kernel(DType dtype);
const void* write_offsets_kernel();

}  // namespace seqkernels::cuda
