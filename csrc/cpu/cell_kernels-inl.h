// The kernels of one cell and storage type S, with operands in format F (gemm/formats-inl.h). Compiled once per ISA.
#pragma once
#include "backward_norm-inl.h"
#include "forward_inputs-inl.h"
#include "forward_norm-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F = ScalarFormat<Compute<S>>>
constexpr LayerKernels cell_kernels() {
  return {
      [](const ForwardArguments& p) { return ForwardLoop<Cell, S, F>(p, nullptr).workspace(); },
      [](const ForwardArguments& p, Member member) { ForwardLoop<Cell, S, F>(p, p.workspace).run(member); },
      [](const BackwardArguments& p) { return BackwardLoop<Cell, S, F>(p, nullptr).workspace(); },
      [](const BackwardArguments& p, Member member) { BackwardLoop<Cell, S, F>(p, p.workspace).run(member); },
  };
}

}  // namespace seqkernels::SEQKERNELS_ISA
