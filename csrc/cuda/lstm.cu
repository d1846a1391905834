// The LSTM's kernels.
#include "../cells/lstm.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& lstm_kernels(DType dtype, bool tf32) { return kernels_of<cells::Lstm>(dtype, tf32); }

}  // namespace seqkernels::cuda
