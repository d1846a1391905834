// An op for tests: exp, sigmoid or tanh as the CPU kernels compute them, for float32 and float64.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../checks.h"
#include "dispatch.h"

STABLE_TORCH_LIBRARY_FRAGMENT(seqkernels, m) { m.def("_math(Tensor x, str function) -> Tensor"); }

namespace seqkernels {
namespace {

Tensor math_cpu(Tensor x, std::string function) {
  using torch::headeronly::ScalarType;
  const bool is_double = x.scalar_type() == ScalarType::Double;
  if (!is_double && x.scalar_type() != ScalarType::Float) fail("x must be float32 or float64");
  if (function != "exp" && function != "sigmoid" && function != "tanh")
    fail("function must be 'exp', 'sigmoid' or 'tanh', got '", function, "'");
  const Tensor in = torch::stable::contiguous(x);
  Tensor out = torch::stable::empty_like(in);
  cpu_kernels().math(function == "exp"    ? MathFunction::kExp
                     : function == "tanh" ? MathFunction::kTanh
                                          : MathFunction::kSigmoid,
                     is_double ? DType::kFloat64 : DType::kFloat32, in.data_ptr(), out.data_ptr(), in.numel());
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(seqkernels, CPU, m) { m.impl("_math", TORCH_BOX(&math_cpu)); }

}  // namespace
}  // namespace seqkernels
