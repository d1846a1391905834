// The kernels of the vanilla RNN with ReLU.
#include "../cells/rnn.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& rnn_relu_kernels(DType dtype, bool tf32) { return kernels_of<cells::Rnn<cells::Relu>>(dtype, tf32); }

}  // namespace seqkernels::cuda
