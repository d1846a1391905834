// Long short-term memory, with the forget gate of Gers et al. (2000); gate order and biases as torch.nn.LSTM.
//   Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
//
//   i = sigmoid(x W_ii^T + b_ii + h_prev W_hi^T + b_hi)        c = f c_prev + i g
//   f = sigmoid(x W_if^T + b_if + h_prev W_hf^T + b_hf)        h = o tanh(c)
//   g = tanh   (x W_ig^T + b_ig + h_prev W_hg^T + b_hg)
//   o = sigmoid(x W_io^T + b_io + h_prev W_ho^T + b_ho)
#pragma once
#include "cell.h"

namespace seqkernels::cells {

// The gradients of an LSTM's gates, from that of h and the complete one of c. Each product begins with factors of at most 1, so
// that none overflows where the gradient does not.
template <class V>
SEQKERNELS_INLINE void lstm_dgates(const V& i, const V& f, const V& g, const V& o, const V& tanh_c, const V& c_prev,
                                   const V& dh, const V& dc, V* dgates) {
  const V one(1);
  dgates[0] = i * (one - i) * g * dc;
  dgates[1] = f * (one - f) * c_prev * dc;
  dgates[2] = i * (one - g * g) * dc;
  dgates[3] = o * (one - o) * tanh_c * dh;
}

struct Lstm : OneStage<4, 4> {
  static constexpr const char* kName = "lstm";
  static constexpr int kDgates = 4;
  static constexpr bool kHasCellState = true, kBackwardReadsH = false;
  SEQKERNELS_INLINE static constexpr int input_dgate(int gate) { return gate; }
  SEQKERNELS_INLINE static constexpr int hidden_dgate(int gate) { return gate; }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<0>, const V* input_gates, const V* hidden_gates, const State<V>& prev,
                                            V* saved) {
    const V i = sigmoid(input_gates[0] + hidden_gates[0]);
    const V f = sigmoid(input_gates[1] + hidden_gates[1]);
    const V g = tanh(input_gates[2] + hidden_gates[2]);
    const V o = sigmoid(input_gates[3] + hidden_gates[3]);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o;
    const V c = next_c(saved, prev.c);
    return {o * tanh(c), c};
  }

  template <class V>
  SEQKERNELS_INLINE static V next_c(const V* saved, const V& c_prev) {
    return saved[1] * c_prev + saved[0] * saved[2];
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V* saved, const State<V>& prev, const State<V>& state,
                                             const State<V>& grad, V* dgates) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], one(1), zero(0);
    const V tanh_c = tanh(state.c);
    const V dc = grad.c + grad.h * o * (one - tanh_c * tanh_c);
    lstm_dgates(i, f, g, o, tanh_c, prev.c, grad.h, dc, dgates);
    return {zero, dc * f};
  }
};

// With h a projection of what the cell makes, as torch.nn.LSTM's proj_size: h = (o tanh(c)) W_hr^T.
//   Sak, Senior, Beaufays, "Long Short-Term Memory Based Recurrent Neural Network Architectures for Large Vocabulary Speech
//   Recognition", 2014 (arXiv:1402.1128), without peephole connections.
struct LstmProjected : Lstm {
  static constexpr const char* kName = "lstm_projected";
  // The last block of dgates is the gradient of h, that of the projection's product.
  static constexpr int kDgates = 5;
  static constexpr int kStages = 2, kStageGates[] = {4, 1}, kStageSaved[] = {4, 0};
  static constexpr bool kIsProjected = true;
  using Lstm::backward, Lstm::forward;

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<1>, const V*, const V* hidden_gates, const State<V>&, V*) {
    return {hidden_gates[4], V()};
  }

  // What is projected.
  template <class V>
  SEQKERNELS_INLINE static V operand(Stage<1>, const V* saved, const State<V>&, const State<V>& state) {
    return saved[3] * tanh(state.c);
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<1>, const V*, const State<V>&, const State<V>&, const State<V>& grad,
                                             V* dgates) {
    dgates[4] = grad.h;
    return {V(0), V()};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V* saved, const State<V>& prev, const State<V>& state,
                                             const State<V>& grad, const V& grad_operand, V* dgates) {
    return backward(Stage<0>(), saved, prev, state, State<V>{grad_operand, grad.c}, dgates);
  }
};

}  // namespace seqkernels::cells
