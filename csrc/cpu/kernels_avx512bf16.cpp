#define SEQKERNELS_ISA avx512bf16
#define SEQKERNELS_ISA_NAME "avx512bf16"
#define SEQKERNELS_BF16_FORMAT Bf16VnniFormat
#include "kernels_bf16-inl.h"

const seqkernels::Bf16Kernels& seqkernels::avx512bf16_kernels() { return avx512bf16::kTable; }
