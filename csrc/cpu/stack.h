// A stack of layers without gradients, from plain pointers: what the ops do for torch's tensors, layer after layer.
#pragma once
#include <vector>

#include "kernels.h"

namespace seqkernels {

struct StackSizes {
  int64_t input_size, hidden_size, layers, directions;
};

// Adds up what a step of one sequence takes, in multiply-adds, over the layers and directions of a stack.
double work_of(CellKind cell, const StackSizes& sizes);

struct StackProblem {
  CellKind cell;
  DType dtype;
  StackSizes sizes;
  int64_t seq_len, batch;
  RowTensor x;                   // [T, B, I]
  char *h0, *c0;                 // [L D, B, H]; null: zeros
  std::vector<Weights> weights;  // [L D]
  char* output;                  // [T, B, D H]
  char *h_n, *c_n;               // [L D, B, H]; c_n not used without cell state
};
void run_stack(const StackProblem& problem);

}  // namespace seqkernels
