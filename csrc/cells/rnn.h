// Elman network with tanh or ReLU, as torch.nn.RNN.
//   Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
//
//   h = phi(x W_ih^T + b_ih + h_prev W_hh^T + b_hh)
#pragma once
#include "cell.h"

namespace seqkernels::cells {

struct Tanh {
  static constexpr const char* kCellName = "rnn_tanh";

  template <class V>
  SEQKERNELS_INLINE static V forward(V x) {
    return tanh(x);
  }
  template <class V>
  SEQKERNELS_INLINE static V backward(V y, V dy) {
    return dy * (V(1) - y * y);
  }
};

struct Relu {
  static constexpr const char* kCellName = "rnn_relu";

  template <class V>
  SEQKERNELS_INLINE static V forward(V x) {
    return relu(x);
  }
  template <class V>
  SEQKERNELS_INLINE static V backward(V y, V dy) {
    return relu_grad(y, dy);
  }
};

template <class Nonlinearity>
struct Rnn : OneStage<1, 0> {
  static constexpr const char* kName = Nonlinearity::kCellName;
  static constexpr int kDgates = 1;
  static constexpr bool kHasCellState = false, kBackwardReadsH = true;
  SEQKERNELS_INLINE static constexpr int input_dgate(int gate) { return gate; }
  SEQKERNELS_INLINE static constexpr int hidden_dgate(int gate) { return gate; }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<0>, const V* input_gates, const V* hidden_gates, const State<V>&,
                                            V*) {
    return {Nonlinearity::forward(input_gates[0] + hidden_gates[0]), V()};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V*, const State<V>&, const State<V>& state,
                                             const State<V>& grad, V* dgates) {
    dgates[0] = Nonlinearity::backward(state.h, grad.h);
    return {V(0), V()};
  }
};

using RnnTanh = Rnn<Tanh>;
using RnnRelu = Rnn<Relu>;

}  // namespace seqkernels::cells
