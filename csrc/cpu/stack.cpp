#include "stack.h"

#include "dispatch.h"
#include "run.h"

namespace seqkernels {
namespace {

int64_t bytes_of(DType dtype) { return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace

double work_of(CellKind cell, const StackSizes& sizes) {
  const int64_t rows = cell_sizes(cell).gates * sizes.hidden_size, above = sizes.directions * sizes.hidden_size;
  const int64_t columns = sizes.input_size + (sizes.layers - 1) * above + sizes.layers * sizes.hidden_size;
  return static_cast<double>(sizes.directions * rows) * static_cast<double>(columns);
}

void run_stack(const StackProblem& stack) {
  const auto [input_size, hidden, layers, directions] = stack.sizes;
  const int64_t bytes = bytes_of(stack.dtype), width = directions * hidden, rows = stack.seq_len * stack.batch;
  const int64_t state_bytes = directions * stack.batch * hidden * bytes;  // of a layer
  std::vector<int64_t> offsets(static_cast<size_t>(stack.seq_len) + 1);
  for (size_t t = 0; t < offsets.size(); ++t) offsets[t] = static_cast<int64_t>(t) * stack.batch;
  // What one layer leaves to the next, in two buffers that take turns.
  const Memory between = layers > 1 ? new_memory(2 * rows * width * bytes) : Memory();
  const CellKernels& kernels = cpu_kernels().cells[int(stack.cell)][int(stack.dtype)];

  RowTensor x = stack.x;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const int64_t inputs = layer == 0 ? input_size : width;
    ForwardProblem p{};
    p.shape = {stack.seq_len, stack.batch, inputs, hidden, directions, offsets.data(), false};
    p.x = x;
    p.output = {layer == layers - 1 ? stack.output : between.get() + layer % 2 * rows * width * bytes,
                stack.batch * width, width};
    const auto state = [&](char* first) { return first ? first + layer * state_bytes : nullptr; };
    p.h0 = state(stack.h0), p.c0 = state(stack.c0), p.h_n = state(stack.h_n), p.c_n = state(stack.c_n);
    for (int64_t d = 0; d < directions; ++d) p.weights[d] = stack.weights[static_cast<size_t>(layer * directions + d)];
    const double work = static_cast<double>(rows) * work_of(stack.cell, {inputs, hidden, 1, directions});
    run_kernel(p, work, kernels.forward_workspace, kernels.forward);
    x = p.output;
  }
}

}  // namespace seqkernels
