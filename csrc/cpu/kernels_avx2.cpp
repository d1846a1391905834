#define SEQKERNELS_ISA avx2
#define SEQKERNELS_ISA_NAME "avx2"
#include "kernels-inl.h"

const seqkernels::KernelTable& seqkernels::avx2_kernels() { return avx2::kTable; }
