// The kernels of one cell and storage type S, with operands in format F. Compiled once per ISA.
#pragma once
#include "backward-inl.h"
#include "backward_products-inl.h"
#include "forward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F = Singles<Compute<S>>>
constexpr CellKernels cell_kernels() {
  return {
      [](const ForwardProblem& p) { return Forward<Cell, S, F>(p, nullptr).workspace(); },
      [](const ForwardProblem& p, Member member) { Forward<Cell, S, F>(p, p.workspace).run(member); },
      [](const BackwardProblem& p) { return Backward<Cell, S, F>(p, nullptr).workspace(); },
      [](const BackwardProblem& p, Member member) { Backward<Cell, S, F>(p, p.workspace).run(member); },
  };
}

}  // namespace seqkernels::SEQKERNELS_ISA
