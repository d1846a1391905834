// The kernels of one cell of the registry, SEQKERNELS_CELL: compiled once for each, so that compilations run side by side.
#include "../cells/registry.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

template const CellKernels& kernels_of<cells::SEQKERNELS_CELL>(DType dtype, bool tf32);

}  // namespace seqkernels::cuda
