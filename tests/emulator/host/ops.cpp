// Both passes of a layer by way of csrc/cuda/layer.cpp, as ops on the CPU.
#include <torch/csrc/stable/library.h>

#include "cuda/plan.h"
#include "layer.h"

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

bool tf32 = false;

LayerSpec spec_of(int64_t cell, const OptionalTensor& batch_sizes, double norm_eps) {
  LayerSpec spec{CellKind(cell), batch_sizes};
  spec.norm_eps = norm_eps;
  return spec;
}

std::vector<Tensor> forward(int64_t cell, Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                            OptionalTensor batch_sizes, double norm_eps, bool save_for_backward) {
  const LayerOutputs out =
      layer_forward_cuda({spec_of(cell, batch_sizes, norm_eps), x, h0, c0, weights}, save_for_backward);
  std::vector<Tensor> results{out.output, out.h_n};
  for (const OptionalTensor& more : {out.c_n, out.saved.gates, out.saved.cells, out.saved.norms})
    if (more) results.push_back(*more);
  return results;
}

std::vector<Tensor> backward(int64_t cell, OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                             Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                             OptionalTensor batch_sizes, double norm_eps, Tensor output, OptionalTensor gates,
                             OptionalTensor cells, OptionalTensor norms, std::vector<bool> needs_grad) {
  const InputGradients grads =
      layer_backward_cuda({spec_of(cell, batch_sizes, norm_eps), x, h0, c0, weights}, {grad_output, grad_h_n, grad_c_n},
                          output, {gates, cells, norms}, needs_grad);
  std::vector<Tensor> results{grads.x, grads.h0};
  if (grads.c0) results.push_back(*grads.c0);
  results.insert(results.end(), grads.weights.begin(), grads.weights.end());
  return results;
}

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY(seqkernels_emulated, m) {
  m.def(
      "forward(int cell, Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, float norm_eps,"
      " bool save_for_backward) -> Tensor[]");
  m.def(
      "backward(int cell, Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor x, Tensor h0, Tensor? c0,"
      " Tensor[] weights, Tensor? batch_sizes, float norm_eps, Tensor output, Tensor? gates, Tensor? cells,"
      " Tensor? norms, bool[] needs_grad) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels_emulated, CPU, m) {
  m.impl("forward", TORCH_BOX(&seqkernels::forward));
  m.impl("backward", TORCH_BOX(&seqkernels::backward));
}

extern "C" __attribute__((visibility("default"))) void allow_tf32(bool allowed) {
  seqkernels::tf32 = allowed;
  seqkernels::cuda::tf32_allowed = [] { return seqkernels::tf32; };
}
