// What tests run of the CPU kernels' source beside the product's own: kernels of CPUs that are not there, and single functions.
#pragma once
#include "cpu/kernels.h"

namespace seqkernels {

const Bf16Kernels& emulated_avx512bf16_kernels();
const Bf16Kernels& emulated_amx_kernels();

enum class MathFunction : int { kExp, kSigmoid, kTanh };

// The functions of activations-inl.h, as an ISA of the build computes them.
struct MathKernels {
  const char* isa;
  void (*float32)(MathFunction function, const float* x, float* y, int64_t n);
  void (*float64)(MathFunction function, const double* x, double* y, int64_t n);
};

const MathKernels& baseline_math();
const MathKernels& avx2_math();
const MathKernels& avx512_math();

}  // namespace seqkernels
