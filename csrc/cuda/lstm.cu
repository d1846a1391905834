// The LSTM's kernels.
#include "../cells/lstm.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& lstm_kernels(DType dtype) { return kernels_of<cells::Lstm>(dtype); }

}  // namespace seqkernels::cuda
