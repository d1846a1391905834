// The Elman RNN's ops, on every device: their signatures in terms of a layer. Shapes are in layer.h.
#include "layer.h"

#include <torch/csrc/stable/library.h>

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

CellKind cell_of(const std::string& nonlinearity) {
  if (nonlinearity != "tanh" && nonlinearity != "relu")
    fail("nonlinearity must be 'tanh' or 'relu', got '", nonlinearity, "'");
  return nonlinearity == "tanh" ? CellKind::kRnnTanh : CellKind::kRnnRelu;
}

template <LayerForward layer_forward>
std::tuple<Tensor, Tensor> rnn_forward(Tensor x, Tensor h0, std::vector<Tensor> weights, std::string nonlinearity,
                                       OptionalTensor batch_sizes) {
  LayerOutputs out = layer_forward({cell_of(nonlinearity), x, h0, {}, weights, batch_sizes}, false);
  return {out.output, out.h_n};
}

template <LayerBackward layer_backward>
std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward(OptionalTensor grad_output, OptionalTensor grad_h_n,
                                                             Tensor x, Tensor h0, std::vector<Tensor> weights,
                                                             std::string nonlinearity, OptionalTensor batch_sizes,
                                                             Tensor output, std::vector<bool> needs_grad) {
  InputGradients grads = layer_backward({cell_of(nonlinearity), x, h0, {}, weights, batch_sizes},
                                        {grad_output, grad_h_n, {}}, output, {}, {}, needs_grad);
  return {grads.x, grads.h0, grads.weights};
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) {
  m.impl("rnn", TORCH_BOX(&rnn_forward<layer_forward_cpu>));
  m.impl("_rnn_backward", TORCH_BOX(&rnn_backward<layer_backward_cpu>));
}

#if defined(SEQKERNELS_CUDA_TARGETS)
STABLE_TORCH_LIBRARY_IMPL(seqkernels, CUDA, m) {
  m.impl("rnn", TORCH_BOX(&rnn_forward<layer_forward_cuda>));
  m.impl("_rnn_backward", TORCH_BOX(&rnn_backward<layer_backward_cuda>));
}
#endif

}  // namespace
}  // namespace seqkernels
