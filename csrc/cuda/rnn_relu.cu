// The kernels of the vanilla RNN with ReLU.
#include "../cells/rnn.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& rnn_relu_kernels(DType dtype) { return kernels_of<cells::Rnn<cells::Relu>>(dtype); }

}  // namespace seqkernels::cuda
