// Elman RNN on the CPU: the ops' signatures, in terms of a layer. Shapes are in layer.h.
#include <torch/csrc/stable/library.h>

#include "../checks.h"
#include "layer.h"

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

CellKind cell_of(const std::string& nonlinearity) {
  if (nonlinearity != "tanh" && nonlinearity != "relu")
    fail("nonlinearity must be 'tanh' or 'relu', got '", nonlinearity, "'");
  return nonlinearity == "tanh" ? CellKind::kRnnTanh : CellKind::kRnnRelu;
}

std::tuple<Tensor, Tensor> rnn_forward_cpu(Tensor x, Tensor h0, std::vector<Tensor> weights, std::string nonlinearity,
                                           OptionalTensor batch_sizes) {
  LayerOutputs out = layer_forward_cpu({cell_of(nonlinearity), x, h0, {}, weights, batch_sizes}, false);
  return {out.output, out.h_n};
}

std::tuple<Tensor, Tensor, std::vector<Tensor>> rnn_backward_cpu(OptionalTensor grad_output, OptionalTensor grad_h_n,
                                                                 Tensor x, Tensor h0, std::vector<Tensor> weights,
                                                                 std::string nonlinearity, OptionalTensor batch_sizes,
                                                                 Tensor output, std::vector<bool> needs_grad) {
  InputGradients grads = layer_backward_cpu({cell_of(nonlinearity), x, h0, {}, weights, batch_sizes},
                                            {grad_output, grad_h_n, {}}, output, {}, {}, needs_grad);
  return {grads.x, grads.h0, grads.weights};
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) {
  m.impl("rnn", TORCH_BOX(&rnn_forward_cpu));
  m.impl("_rnn_backward", TORCH_BOX(&rnn_backward_cpu));
}

}  // namespace
}  // namespace seqkernels
