#define SEQKERNELS_ISA baseline
#define SEQKERNELS_ISA_NAME "baseline"
#include "kernels-inl.h"

const seqkernels::KernelTable& seqkernels::baseline_kernels() { return baseline::kTable; }
