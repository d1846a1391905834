#define SEQKERNELS_ISA amx
#define SEQKERNELS_ISA_NAME "amx"
#define SEQKERNELS_BF16_FORMAT Bf16AmxFormat
#include "kernels_bf16-inl.h"

#if !defined(SEQKERNELS_TILE_INSTRUCTIONS)
#error "compiled without AMX: see the flags in setup.py"
#endif

const seqkernels::Bf16Kernels& seqkernels::amx_kernels() { return amx::kTable; }
