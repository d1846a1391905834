// Both passes of a layer by way of csrc/cuda/layer.cpp, as ops on the CPU.
#include <torch/csrc/stable/library.h>

#include "cuda/plan.h"
#include "layer.h"

namespace seqkernels {
namespace {

using OptionalTensor = std::optional<Tensor>;

bool tf32 = false;

LayerSpec spec_of(int64_t cell, const OptionalTensor& batch_sizes, bool reverse, double norm_eps,
                  const OptionalTensor& lengths, const OptionalTensor& reset_mask, const OptionalTensor& recurrent_mask,
                  const OptionalTensor& zoneout_h, double zoneout_h_rate, const OptionalTensor& zoneout_c,
                  double zoneout_c_rate, bool return_cell_states) {
  LayerSpec spec{CellKind(cell), batch_sizes};
  spec.reverse = reverse, spec.norm_eps = norm_eps;
  spec.lengths = lengths, spec.reset_mask = reset_mask, spec.recurrent_mask = recurrent_mask;
  spec.zoneout_h = zoneout_h, spec.zoneout_h_rate = zoneout_h_rate;
  spec.zoneout_c = zoneout_c, spec.zoneout_c_rate = zoneout_c_rate;
  spec.return_cell_states = return_cell_states;
  return spec;
}

std::vector<Tensor> forward(int64_t cell, Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                            OptionalTensor batch_sizes, bool reverse, double norm_eps, OptionalTensor lengths,
                            OptionalTensor reset_mask, OptionalTensor recurrent_mask, OptionalTensor zoneout_h,
                            double zoneout_h_rate, OptionalTensor zoneout_c, double zoneout_c_rate,
                            bool return_cell_states, bool save_for_backward) {
  const LayerSpec spec = spec_of(cell, batch_sizes, reverse, norm_eps, lengths, reset_mask, recurrent_mask, zoneout_h,
                                 zoneout_h_rate, zoneout_c, zoneout_c_rate, return_cell_states);
  const LayerOutputs out = layer_forward_cuda({spec, x, h0, c0, weights}, save_for_backward);
  std::vector<Tensor> results{out.output, out.h_n};
  for (const OptionalTensor& more : {out.c_n, out.cell_states, out.saved.gates, out.saved.cells, out.saved.norms})
    if (more) results.push_back(*more);
  return results;
}

std::vector<Tensor> backward(int64_t cell, OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n,
                             OptionalTensor grad_cell_states, Tensor x, Tensor h0, OptionalTensor c0,
                             std::vector<Tensor> weights, OptionalTensor batch_sizes, bool reverse, double norm_eps,
                             OptionalTensor lengths, OptionalTensor reset_mask, OptionalTensor recurrent_mask,
                             OptionalTensor zoneout_h, double zoneout_h_rate, OptionalTensor zoneout_c,
                             double zoneout_c_rate, bool return_cell_states, Tensor output, OptionalTensor gates,
                             OptionalTensor cells, OptionalTensor norms, std::vector<bool> needs_grad) {
  const LayerSpec spec = spec_of(cell, batch_sizes, reverse, norm_eps, lengths, reset_mask, recurrent_mask, zoneout_h,
                                 zoneout_h_rate, zoneout_c, zoneout_c_rate, return_cell_states);
  const InputGradients grads =
      layer_backward_cuda({spec, x, h0, c0, weights}, {grad_output, grad_h_n, grad_c_n, grad_cell_states}, output,
                          {gates, cells, norms}, needs_grad);
  std::vector<Tensor> results{grads.x, grads.h0};
  if (grads.c0) results.push_back(*grads.c0);
  results.insert(results.end(), grads.weights.begin(), grads.weights.end());
  return results;
}

// Of both ops.
const std::string kLayer =
    "Tensor x, Tensor h0, Tensor? c0, Tensor[] weights, Tensor? batch_sizes, bool reverse, float norm_eps,"
    " Tensor? lengths, Tensor? reset_mask, Tensor? recurrent_mask, Tensor? zoneout_h, float zoneout_h_rate,"
    " Tensor? zoneout_c, float zoneout_c_rate, bool return_cell_states";

}  // namespace
}  // namespace seqkernels

STABLE_TORCH_LIBRARY(seqkernels_emulated, m) {
  using seqkernels::kLayer;
  m.def(("forward(int cell, " + kLayer + ", bool save_for_backward) -> Tensor[]").c_str());
  m.def(("backward(int cell, Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cell_states, " +
         kLayer + ", Tensor output, Tensor? gates, Tensor? cells, Tensor? norms, bool[] needs_grad) -> Tensor[]")
            .c_str());
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels_emulated, CPU, m) {
  m.impl("forward", TORCH_BOX(&seqkernels::forward));
  m.impl("backward", TORCH_BOX(&seqkernels::backward));
}

extern "C" __attribute__((visibility("default"))) void allow_tf32(bool allowed) {
  seqkernels::tf32 = allowed;
  seqkernels::cuda::tf32_allowed = [] { return seqkernels::tf32; };
}
