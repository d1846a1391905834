// A layer on the CPU: its arguments in the kernels' terms.
#include "../layer.h"

#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

RowTensor rows_of(const Tensor& tensor, bool packed) {
  return packed ? RowTensor{data(tensor), 0, tensor.stride(0)}
                : RowTensor{data(tensor), tensor.stride(0), tensor.stride(1)};
}

RowTensor rows_of(const std::optional<Tensor>& tensor, bool packed) {
  return tensor ? rows_of(*tensor, packed) : RowTensor{};
}

Transition transition_of(const Layer& layer) {
  const LayerSpec& spec = layer.spec();
  return {rows_of(spec.reset_mask, layer.packed()),
          data(spec.recurrent_mask),
          {rows_of(spec.zoneout_h, layer.packed()), spec.zoneout_h_rate},
          {rows_of(spec.zoneout_c, layer.packed()), spec.zoneout_c_rate}};
}

template <class Arguments>
Arguments arguments_of(const Layer& layer) {
  Arguments arguments{};
  arguments.shape = {layer.seq_len(),        layer.batch(),       layer.input_size(),
                     layer.hidden_size(),    layer.output_size(), layer.directions(),
                     layer.offsets().data(), layer.packed(),      layer.spec().lengths ? layer.order().data() : nullptr,
                     layer.x().size(0),      layer.spec().reverse};
  arguments.transition = transition_of(layer);
  arguments.x = rows_of(layer.x(), layer.packed());
  arguments.h0 = data(layer.h0());
  arguments.c0 = data(layer.c0());
  arguments.norm_eps = layer.spec().norm_eps;
  for (int64_t d = 0; d < layer.directions(); ++d)
    for (int kind = 0; kind < kWeightKinds; ++kind) arguments.weights[d].of[kind] = layer.weight(d, WeightKind(kind));
  return arguments;
}

// For results, which are most of what a call allocates.
void want_huge_pages(const std::optional<Tensor>& tensor) {
  if (tensor) seqkernels::want_huge_pages(data(*tensor), tensor->numel() * int64_t(tensor->element_size()));
}

const LayerKernels& kernels_of(const Layer& layer) {
  return cpu_kernels().cells[int(layer.cell())][int(layer.dtype())];
}

}  // namespace

LayerOutputs layer_forward_cpu(const LayerInputs& inputs, bool save_for_backward) {
  const Layer layer(inputs);
  LayerOutputs out = layer.new_outputs(save_for_backward);
  ForwardArguments arguments = arguments_of<ForwardArguments>(layer);
  arguments.output = rows_of(out.output, layer.packed());
  arguments.h_n = data(out.h_n);
  arguments.c_n = data(out.c_n);
  if (layer.spec().return_cell_states) arguments.cell_states = rows_of(out.cell_states, layer.packed());
  want_huge_pages(out.output), want_huge_pages(out.cell_states);
  if (save_for_backward) {
    want_huge_pages(out.saved.gates), want_huge_pages(out.saved.cells);
    arguments.gates = data(out.saved.gates);
    arguments.cells = data(out.saved.cells);
    arguments.norms = data(out.saved.norms);
  }
  const LayerKernels& kernels = kernels_of(layer);
  run_kernel(arguments, layer.work(), kernels.forward_workspace, kernels.forward);
  return out;
}

InputGradients layer_backward_cpu(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                  const LayerSaved& saved, const std::vector<bool>& needs_grad) {
  const Layer layer(inputs);
  LayerBackwardTensors tensors(layer, grads, output, saved, needs_grad);
  BackwardArguments arguments = arguments_of<BackwardArguments>(layer);
  arguments.output = rows_of(tensors.output, layer.packed());
  arguments.grad_output = rows_of(tensors.grad_output, layer.packed());
  arguments.grad_cells = rows_of(tensors.grad_cells, layer.packed());
  arguments.grad_h_n = data(tensors.grad_h_n);
  arguments.grad_c_n = data(tensors.grad_c_n);
  arguments.gates = data(tensors.saved.gates);
  arguments.cells = data(tensors.saved.cells);
  arguments.norms = data(tensors.saved.norms);
  want_huge_pages(tensors.results.x);
  arguments.grad_x = result_data(tensors.results.x);
  arguments.grad_h0 = result_data(tensors.results.h0);
  if (tensors.results.c0) arguments.grad_c0 = result_data(*tensors.results.c0);
  for (int64_t d = 0; d < layer.directions(); ++d)
    for (int kind = 0; kind < kWeightKinds; ++kind)
      arguments.grads[d].of[kind] = tensors.weight(layer, d, WeightKind(kind));
  const LayerKernels& kernels = kernels_of(layer);
  run_kernel(arguments, 2 * layer.work(), kernels.backward_workspace, kernels.backward);
  return tensors.results;
}

}  // namespace seqkernels
