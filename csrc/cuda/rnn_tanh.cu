// The kernels of the vanilla RNN with tanh.
#include "../cells/rnn.h"
#include "kernels.cuh"

namespace seqkernels::cuda {

const CellKernels& rnn_tanh_kernels(DType dtype, bool tf32) { return kernels_of<cells::Rnn<cells::Tanh>>(dtype, tf32); }

}  // namespace seqkernels::cuda
