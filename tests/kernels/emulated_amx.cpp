// amx for the tests of CPUs that lack it: the same source and sizes, with tile registers in memory.
#define SEQKERNELS_EMULATE_AVX512
#define SEQKERNELS_ISA emulated_amx
#define SEQKERNELS_ISA_NAME "emulated_amx"
#define SEQKERNELS_BF16_FORMAT Bf16AmxFormat
#include "kernels.h"

#include "cpu/kernels_bf16-inl.h"

const seqkernels::Bf16Kernels& seqkernels::emulated_amx_kernels() { return emulated_amx::kTable; }
