// avx512bf16 for the tests of CPUs that lack it: the same source and sizes, with the one instruction in plain arithmetic.
#define SEQKERNELS_EMULATE_AVX512
#define SEQKERNELS_ISA emulated_bf16
#define SEQKERNELS_ISA_NAME "emulated_bf16"
#include "kernels_bf16.inc"

const seqkernels::Bf16Kernels& seqkernels::emulated_bf16_kernels() { return emulated_bf16::kTable; }
