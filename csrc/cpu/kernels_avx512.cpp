#define SEQKERNELS_ISA avx512
#define SEQKERNELS_ISA_NAME "avx512"
#include "kernels-inl.h"

const seqkernels::KernelTable& seqkernels::avx512_kernels() { return avx512::kTable; }
