// avx512bf16 for the tests of CPUs that lack it: the same source and sizes, with the one instruction in plain arithmetic.
#define SEQKERNELS_EMULATE_AVX512
#define SEQKERNELS_ISA emulated_avx512bf16
#define SEQKERNELS_ISA_NAME "emulated_avx512bf16"
#define SEQKERNELS_BF16_FORMAT Bf16VnniFormat
#include "kernels.h"

#include "cpu/kernels_bf16-inl.h"

const seqkernels::Bf16Kernels& seqkernels::emulated_avx512bf16_kernels() { return emulated_avx512bf16::kTable; }
