// The GRU's kernels.
#include "../cells/gru.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& gru_kernels(DType dtype, bool tf32) { return kernels_of<cells::Gru>(dtype, tf32); }

}  // namespace seqkernels::cuda
