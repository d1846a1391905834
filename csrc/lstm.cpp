// The LSTM's ops, on every device: their signatures in terms of a layer. Shapes are in layer.h.
#include "layer.h"

#include <torch/csrc/stable/library.h>

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <LayerForward layer_forward>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> lstm_forward(Tensor x, Tensor h0, Tensor c0,
                                                                std::vector<Tensor> weights, OptionalTensor batch_sizes,
                                                                bool save_for_backward) {
  LayerOutputs out = layer_forward({CellKind::kLstm, x, h0, c0, weights, batch_sizes}, save_for_backward);
  return {out.output, out.h_n, *out.c_n, *out.gates, *out.cells};
}

template <LayerBackward layer_backward>
std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> lstm_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n, Tensor x, Tensor h0, Tensor c0,
    std::vector<Tensor> weights, OptionalTensor batch_sizes, Tensor output, Tensor gates, Tensor cells,
    std::vector<bool> needs_grad) {
  InputGradients grads = layer_backward({CellKind::kLstm, x, h0, c0, weights, batch_sizes},
                                        {grad_output, grad_h_n, grad_c_n}, output, gates, cells, needs_grad);
  return {grads.x, grads.h0, *grads.c0, grads.weights};
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) {
  m.impl("lstm", TORCH_BOX(&lstm_forward<layer_forward_cpu>));
  m.impl("_lstm_backward", TORCH_BOX(&lstm_backward<layer_backward_cpu>));
}

#if defined(SEQKERNELS_CUDA_TARGETS)
STABLE_TORCH_LIBRARY_IMPL(seqkernels, CUDA, m) {
  m.impl("lstm", TORCH_BOX(&lstm_forward<layer_forward_cuda>));
  m.impl("_lstm_backward", TORCH_BOX(&lstm_backward<layer_backward_cuda>));
}
#endif

}  // namespace
}  // namespace seqkernels
