// The GRU's ops, on every device: their signatures in terms of a layer. Shapes are in layer.h.
#include "layer.h"

#include <torch/csrc/stable/library.h>

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

template <LayerForward layer_forward>
std::tuple<Tensor, Tensor, Tensor> gru_forward(Tensor x, Tensor h0, std::vector<Tensor> weights,
                                               OptionalTensor batch_sizes, bool save_for_backward) {
  LayerOutputs out = layer_forward({CellKind::kGru, x, h0, {}, weights, batch_sizes}, save_for_backward);
  return {out.output, out.h_n, *out.gates};
}

template <LayerBackward layer_backward>
std::tuple<Tensor, Tensor, std::vector<Tensor>> gru_backward(OptionalTensor grad_output, OptionalTensor grad_h_n,
                                                             Tensor x, Tensor h0, std::vector<Tensor> weights,
                                                             OptionalTensor batch_sizes, Tensor output, Tensor gates,
                                                             std::vector<bool> needs_grad) {
  InputGradients grads = layer_backward({CellKind::kGru, x, h0, {}, weights, batch_sizes}, {grad_output, grad_h_n, {}},
                                        output, gates, {}, needs_grad);
  return {grads.x, grads.h0, grads.weights};
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) {
  m.impl("gru", TORCH_BOX(&gru_forward<layer_forward_cpu>));
  m.impl("_gru_backward", TORCH_BOX(&gru_backward<layer_backward_cpu>));
}

#if defined(SEQKERNELS_CUDA_TARGETS)
STABLE_TORCH_LIBRARY_IMPL(seqkernels, CUDA, m) {
  m.impl("gru", TORCH_BOX(&gru_forward<layer_forward_cuda>));
  m.impl("_gru_backward", TORCH_BOX(&gru_backward<layer_backward_cuda>));
}
#endif

}  // namespace
}  // namespace seqkernels
