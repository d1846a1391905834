// The kernel table of one ISA: every cell and storage type. Compiled once per ISA.
#pragma once
#include "../cells/registry.h"
#include "cell_kernels-inl.h"
#include "frozen-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell>
constexpr FrozenKernels frozen_kernels() {
  return {
      [](const FrozenArguments& p, Member member) { FrozenForward<Cell, float>(p).run(member); },
      [](const FrozenArguments& p, Member member) { FrozenForward<Cell, Bf16>(p).run(member); },
  };
}

// Every cell of the registry and every dtype, in the order of DType.
template <class... Cells>
constexpr KernelTable table_of(cells::CellList<Cells...>) {
  return {
      SEQKERNELS_ISA_NAME,
      VecF::kLanes,
      {{cell_kernels<Cells, float>(), cell_kernels<Cells, double>(), cell_kernels<Cells, Bf16>(),
        cell_kernels<Cells, Half>()}...},
      {frozen_kernels<Cells>()...},
  };
}
constexpr KernelTable kTable = table_of(cells::Registry());

}  // namespace seqkernels::SEQKERNELS_ISA
