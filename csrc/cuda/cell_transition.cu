// The persistent kernels of one cell of the registry, SEQKERNELS_CELL, with what happens between steps (transition.cuh):
// compiled beside its others.
#include "../cells/registry.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

template const CellKernels& transition_kernels_of<cells::SEQKERNELS_CELL>(DType dtype, bool tf32);

}  // namespace seqkernels::cuda
