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

  // (Problem, Partition); null where tensor cores do not take the dtype. Those of float32 use TF32.
  const void* persistent = nullptr;
  int resident_chunks = 0;  // of each warp, in registers
  int64_t (*shared_bytes)(const Partition&) = nullptr;
  int64_t (*exchange_words)(const Partition&) = nullptr;  // of one group
};

struct CellKernels {
  PassKernels forward, backward;
};

const CellKernels& lstm_kernels(DType dtype);
const CellKernels& gru_kernels(DType dtype);
const CellKernels& rnn_tanh_kernels(DType dtype);
const CellKernels& rnn_relu_kernels(DType dtype);
const CellKernels& kernels_of(CellKind cell, DType dtype);

// rows.cuh: (Shape, output, h0, previous), and (OffsetsPart, offsets)
const void* previous_states_kernel(DType dtype);
const void* write_offsets_kernel();

}  // namespace seqkernels::cuda
