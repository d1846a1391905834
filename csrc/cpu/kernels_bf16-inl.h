// The bfloat16 kernels of an ISA that multiplies pairs of bfloat16 numbers; all else is as in the ISA it extends.
#pragma once
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
#include "cell_kernels-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

using Format = SEQKERNELS_BF16_FORMAT;

// In the order of CellKind.
constexpr Bf16Kernels kTable = {
    SEQKERNELS_ISA_NAME,
    {cell_kernels<cells::Lstm, Bf16, Format>(), cell_kernels<cells::Gru, Bf16, Format>(),
     cell_kernels<cells::Rnn<cells::Tanh>, Bf16, Format>(), cell_kernels<cells::Rnn<cells::Relu>, Bf16, Format>()}};

}  // namespace seqkernels::SEQKERNELS_ISA
