// The kernel table of one ISA: every cell and storage type. Compiled once per ISA.
#pragma once
#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
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

// In the order of CellKind and DType.
#define SEQKERNELS_CELL(cell) \
  {cell_kernels<cell, float>(), cell_kernels<cell, double>(), cell_kernels<cell, Bf16>(), cell_kernels<cell, Half>()}
constexpr KernelTable kTable = {
    SEQKERNELS_ISA_NAME,
    VecF::kLanes,
    {SEQKERNELS_CELL(cells::Lstm), SEQKERNELS_CELL(cells::Gru), SEQKERNELS_CELL(cells::Rnn<cells::Tanh>),
     SEQKERNELS_CELL(cells::Rnn<cells::Relu>)},
    {frozen_kernels<cells::Lstm>(), frozen_kernels<cells::Gru>(), frozen_kernels<cells::Rnn<cells::Tanh>>(),
     frozen_kernels<cells::Rnn<cells::Relu>>()},
    math,
};
#undef SEQKERNELS_CELL

}  // namespace seqkernels::SEQKERNELS_ISA
