// A layer on the CPU: the problem in the kernels' terms.
#include "../layer.h"

#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

RowTensor rows_of(const Tensor& tensor, bool packed) {
  return packed ? RowTensor{data(tensor), 0, tensor.stride(0)}
                : RowTensor{data(tensor), tensor.stride(0), tensor.stride(1)};
}

template <class Problem>
Problem problem_of(const Layer& layer) {
  Problem problem{};
  problem.shape = {layer.seq_len(),    layer.batch(),          layer.input_size(), layer.hidden_size(),
                   layer.directions(), layer.offsets().data(), layer.packed()};
  problem.x = rows_of(layer.x(), layer.packed());
  problem.h0 = data(layer.h0());
  problem.c0 = data(layer.c0());
  for (int64_t d = 0; d < layer.directions(); ++d)
    problem.weights[d] = {layer.weight(d, 0), layer.weight(d, 1), layer.weight(d, 2), layer.weight(d, 3)};
  return problem;
}

const CellKernels& kernels_of(const Layer& layer) { return cpu_kernels().cells[int(layer.cell())][int(layer.dtype())]; }

}  // namespace

LayerOutputs layer_forward_cpu(const LayerInputs& inputs, bool save_for_backward) {
  const Layer layer(inputs);
  LayerOutputs out = layer.new_outputs(save_for_backward);
  ForwardProblem problem = problem_of<ForwardProblem>(layer);
  problem.output = rows_of(out.output, layer.packed());
  problem.h_n = data(out.h_n);
  problem.c_n = data(out.c_n);
  if (save_for_backward) {
    problem.gates = data(out.gates);
    problem.cells = data(out.cells);
  }
  const CellKernels& kernels = kernels_of(layer);
  run_kernel(problem, layer.work(), kernels.forward_workspace, kernels.forward);
  return out;
}

InputGradients layer_backward_cpu(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                  const std::optional<Tensor>& gates, const std::optional<Tensor>& cells,
                                  const std::vector<bool>& needs_grad) {
  const Layer layer(inputs);
  LayerBackwardTensors tensors(layer, grads, output, gates, cells, needs_grad);
  BackwardProblem problem = problem_of<BackwardProblem>(layer);
  problem.output = rows_of(tensors.output, layer.packed());
  if (tensors.grad_output) problem.grad_output = rows_of(*tensors.grad_output, layer.packed());
  problem.grad_h_n = data(tensors.grad_h_n);
  problem.grad_c_n = data(tensors.grad_c_n);
  problem.gates = data(tensors.gates);
  problem.cells = data(tensors.cells);
  problem.grad_x = result_data(tensors.results.x);
  problem.grad_h0 = result_data(tensors.results.h0);
  if (tensors.results.c0) problem.grad_c0 = result_data(*tensors.results.c0);
  for (int64_t d = 0; d < layer.directions(); ++d)
    problem.grads[d] = {tensors.weight(layer, d, 0), tensors.weight(layer, d, 1), tensors.weight(layer, d, 2),
                        tensors.weight(layer, d, 3)};
  const CellKernels& kernels = kernels_of(layer);
  run_kernel(problem, 2 * layer.work(), kernels.backward_workspace, kernels.backward);
  return tensors.results;
}

}  // namespace seqkernels
