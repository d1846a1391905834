// One layer on the CPU, for any cell: checks, output tensors, workspace, and the team that runs the kernel.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace seqkernels {

using torch::stable::Tensor;

struct LayerInputs {
  CellKind cell;
  Tensor x;                           // [T, B, I] or packed [R, I]
  Tensor h0;                          // [D, B, H]
  std::optional<Tensor> c0;           // [D, B, H]
  std::vector<Tensor> weights;        // per direction w_ih, w_hh and, with biases, b_ih, b_hh
  std::optional<Tensor> batch_sizes;  // [T] of a packed sequence
};

struct LayerOutputs {
  Tensor output;  // [T, B, D H] or packed [R, D H]
  Tensor h_n;     // [D, B, H]
  Tensor c_n;     // likewise; of a cell without cell state, not defined
  Tensor gates;   // [D, R, saved, Hp] or, not saved, [0]
  Tensor cells;   // [D, R, Hp] or [0]
};

struct LayerGradients {
  std::optional<Tensor> output, h_n, c_n;  // null: not used in the loss
};

struct InputGradients {  // [0] where not asked for
  Tensor x, h0, c0;
  std::vector<Tensor> weights;
};

LayerOutputs layer_forward_cpu(const LayerInputs& inputs, bool save_for_backward);

// `needs_grad`: x, h0, c0 (if the cell has one), then each weight.
InputGradients layer_backward_cpu(const LayerInputs& inputs, const LayerGradients& grads, const Tensor& output,
                                  const std::optional<Tensor>& gates, const std::optional<Tensor>& cells,
                                  const std::vector<bool>& needs_grad);

}  // namespace seqkernels
