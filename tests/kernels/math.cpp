// exp, sigmoid and tanh of one ISA, SEQKERNELS_ISA: compiled once for each that has vectors of its own.
#include "cpu/activations-inl.h"
#include "kernels.h"

#define SEQKERNELS_STRING(name) SEQKERNELS_STRING_OF(name)
#define SEQKERNELS_STRING_OF(name) #name

namespace seqkernels::SEQKERNELS_ISA {
namespace {

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

constexpr MathKernels kMath{SEQKERNELS_STRING(SEQKERNELS_ISA), map<float>, map<double>};

}  // namespace
}  // namespace seqkernels::SEQKERNELS_ISA

const seqkernels::MathKernels& seqkernels::SEQKERNELS_MATH() { return SEQKERNELS_ISA::kMath; }
