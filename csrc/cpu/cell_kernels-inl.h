// The kernels of one cell and storage type S, with operands in format F (gemm/formats-inl.h). Compiled once per ISA.
#pragma once
#include "backward-inl.h"
#include "backward_products-inl.h"
#include "forward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F = ScalarFormat<Compute<S>>>
constexpr CellKernels cell_kernels() {
  return {
      [](const ForwardProblem& p) { return ForwardLoop<Cell, S, F>(p, nullptr).workspace(); },
      [](const ForwardProblem& p, Member member) { ForwardLoop<Cell, S, F>(p, p.workspace).run(member); },
      [](const BackwardProblem& p) { return BackwardLoop<Cell, S, F>(p, nullptr).workspace(); },
      [](const BackwardProblem& p, Member member) { BackwardLoop<Cell, S, F>(p, p.workspace).run(member); },
  };
}

}  // namespace seqkernels::SEQKERNELS_ISA
