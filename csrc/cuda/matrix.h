// Matrix products and sums, through torch's dispatcher.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include "../layer.h"

namespace seqkernels::cuda {

using torch::stable::Tensor;

// Part of a tensor's memory; `offset` in elements from its first.
Tensor window(const Tensor& base, const Sizes& sizes, const Sizes& strides, int64_t offset = 0);
// Part of a tensor's memory, with the strides of a contiguous tensor; `offset` in elements from its first.
Tensor window(const Tensor& base, const Sizes& sizes, int64_t offset = 0);
// The tensor with its last two dimensions swapped.
Tensor transposed(const Tensor& matrix);

// Weight `kind` (w_ih, w_hh) of a layer's directions, [D, G H, columns]; that of one direction as it is.
Tensor stacked_weights(const Layer& layer, WeightKind kind);

// out = a b, of matrices or batches of matrices. Where `out` is float32 and the operands are 16-bit, no sum is rounded.
void multiply(const Tensor& a, const Tensor& b, const Tensor& out);

// out [N] = the sum of the rows of a matrix [M, N].
void sum_rows(const Tensor& matrix, const Tensor& out);

}  // namespace seqkernels::cuda
