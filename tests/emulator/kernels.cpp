// The host of the CUDA kernels, on the emulator: `kernels PROBLEM RESULT` runs both passes of one layer and ends with
// status 1 and the error if there is one. It says which kernels it ran, a line each.
//
// What the real host asks torch for are naive sums here, in double. All that kernels write to is poisoned, of exactly the
// size that they were promised, and what they are to read alone cannot be written. Arrays of a problem (see records.h):
//   cell, dtype, plan, seed           integers: CellKind, DType, Plan, and that of the first launch
//   directions, batch, hidden, input  integers, as seq_len and outputs, the units of h
//   batch_sizes                       [T] of a packed problem
//   launches                          steps of each forward launch; T together
//   partition                         members, unit_groups, columns, column_groups, column_tiles, teams of a persistent plan
//   tf32                              whether persistent kernels may multiply float32 as TF32
//   saves                             whether forward saves for backward; if not, it is all that is run
//   norm_eps                          float64, of a normalised cell
//   x, h0, c0, w_ih[d], w_hh[d], b_ih[d], b_hh[d], w_hr[d], norm_ih[d], norm_hh[d], norm_c[d], norm_c_bias[d], grad_output,
//   grad_h_n, grad_c_n                of the dtype; some may be missing
// The result's, all float64: output, h_n, c_n, and grad_ of all that may have a gradient.
#include <cstdio>

#include "layer.h"

namespace seqkernels::cuda {
namespace {

void run(const char* problem_path, const char* result_path) {
  const Records problem = Records::read(problem_path);
  RecordWriter result(result_path);
  switch (static_cast<DType>(problem.integer("dtype"))) {
    case DType::kFloat64:
      return Host<double>(problem, result).run();
    case DType::kFloat32:
      return Host<float>(problem, result).run();
    case DType::kBFloat16:
      return Host<BFloat16>(problem, result).run();
    default:
      return Host<Float16>(problem, result).run();
  }
}

}  // namespace
}  // namespace seqkernels::cuda

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: kernels PROBLEM RESULT\n");
    return 2;
  }
  try {
    seqkernels::cuda::run(arguments[1], arguments[2]);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
