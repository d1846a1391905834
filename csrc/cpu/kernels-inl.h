// The kernel table of one ISA: every cell and storage type. Compiled once per ISA.
#pragma once
#include "../cells/registry.h"
#include "cell_kernels-inl.h"
#include "frozen_norm-inl.h"
#include "random-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <template <class, class> class Forward, class Cell>
constexpr FrozenKernels frozen_kernels() {
  return {
      [](const FrozenArguments& p) { return Forward<Cell, float>(p).scratch(); },
      [](const FrozenArguments& p, Member member) { Forward<Cell, float>(p).run(member); },
      [](const FrozenArguments& p, Member member) { Forward<Cell, Bf16>(p).run(member); },
  };
}
template <class Cell>
constexpr FrozenKernels frozen_kernels() {
  if constexpr (Cell::kNorm == cells::Norm::kNone)
    return frozen_kernels<FrozenForward, Cell>();
  else
    return frozen_kernels<FrozenNormForward, Cell>();
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
      random_flags,
  };
}
constexpr KernelTable kTable = table_of(cells::Registry());

}  // namespace seqkernels::SEQKERNELS_ISA
