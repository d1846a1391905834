// The GRU's kernels.
#include "../cells/gru.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& gru_kernels(DType dtype) { return kernels_of<cells::Gru>(dtype); }

}  // namespace seqkernels::cuda
