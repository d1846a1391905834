// The kernels of the vanilla RNN with tanh.
#include "../cells/rnn.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& rnn_tanh_kernels(DType dtype) { return kernels_of<cells::Rnn<cells::Tanh>>(dtype); }

}  // namespace seqkernels::cuda
