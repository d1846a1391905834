// The kernel table of one ISA: every cell and storage type. Compiled once per ISA.
#pragma once
#include "../cells/registry.h"
#include "cell_kernels-inl.h"
#include "frozen-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell>
constexpr FrozenKernels frozen_kernels() {
  return {
      [](const FrozenProblem& p, Member member) { FrozenForward<Cell, float>(p).run(member); },
      [](const FrozenProblem& p, Member member) { FrozenForward<Cell, Bf16>(p).run(member); },
  };
}

template <class T>
void map(MathFunction function, const T* x, T* y, int64_t n) {
  for (int64_t i = 0; i < n; i += Vec<T>::kLanes) {
    const Vec<T> v = load(x + i, n - i);
    const Vec<T> result = function == MathFunction::kExp    ? exp(v)
                          : function == MathFunction::kTanh ? tanh(v)
                                                            : sigmoid(v);
    store(y + i, result, n - i);
  }
}

inline void math(MathFunction function, DType dtype, const void* x, void* y, int64_t n) {
  if (dtype == DType::kFloat32)
    map(function, static_cast<const float*>(x), static_cast<float*>(y), n);
  else
    map(function, static_cast<const double*>(x), static_cast<double*>(y), n);
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
      math,
  };
}
constexpr KernelTable kTable = table_of(cells::Registry());

}  // namespace seqkernels::SEQKERNELS_ISA
