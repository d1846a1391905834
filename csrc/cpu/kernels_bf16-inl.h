// The bfloat16 kernels of an ISA that multiplies pairs of bfloat16 numbers; all else is as in the ISA it extends.
#pragma once
#include "../cells/registry.h"
#include "cell_kernels-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

using Format = SEQKERNELS_BF16_FORMAT;

template <class... Cells>
constexpr Bf16Kernels table_of(cells::CellList<Cells...>) {
  return {SEQKERNELS_ISA_NAME, {cell_kernels<Cells, Bf16, Format>()...}};
}
constexpr Bf16Kernels kTable = table_of(cells::Registry());

}  // namespace seqkernels::SEQKERNELS_ISA
