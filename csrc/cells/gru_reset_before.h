// Gated recurrent unit with the reset gate applied before the product, to the previous state.
//   Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014 (arXiv:1406.1078, version 3);
//   Keras has it as GRU(reset_after=False), ONNX as linear_before_reset=0. Where z is 1, h stays, as in torch.nn.GRU.
//
//   r = sigmoid(x W_ir^T + b_ir + h_prev W_hr^T + b_hr)
//   z = sigmoid(x W_iz^T + b_iz + h_prev W_hz^T + b_hz)
//   n = tanh   (x W_in^T + b_in + (r h_prev) W_hn^T + b_hn)
//   h = (1 - z) n + z h_prev
#pragma once
#include "cell.h"

namespace seqkernels::cells {

struct GruResetBefore : NotNormalized {
  static constexpr const char* kName = "gru_reset_before";
  // The first stage makes r and z, the second one n. Saved are [z, r | n]: the second stage reads z.
  static constexpr int kGates = 3, kSaved = 3, kDgates = 3;
  static constexpr int kStages = 2, kStageGates[] = {2, 1}, kStageSaved[] = {2, 1}, kCarried = 1;
  static constexpr bool kIsProjected = false, kHasCellState = false, kBackwardReadsH = true;
  SEQKERNELS_INLINE static constexpr int input_dgate(int gate) { return gate; }
  SEQKERNELS_INLINE static constexpr int hidden_dgate(int gate) { return gate; }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<0>, const V* input_gates, const V* hidden_gates, const State<V>& prev,
                                            V* saved) {
    const V r = sigmoid(input_gates[0] + hidden_gates[0]);
    const V z = sigmoid(input_gates[1] + hidden_gates[1]);
    saved[0] = z, saved[1] = r;
    return {r * prev.h, V()};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<1>, const V* input_gates, const V* hidden_gates, const State<V>& prev,
                                            V* saved) {
    const V z = saved[0];
    const V n = tanh(input_gates[2] + hidden_gates[2]);
    saved[2] = n;
    return {n + z * (prev.h - n), V()};
  }

  // What the second stage multiplies.
  template <class V>
  SEQKERNELS_INLINE static V operand(Stage<1>, const V* saved, const State<V>& prev, const State<V>&) {
    return saved[1] * prev.h;
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<1>, const V* saved, const State<V>&, const State<V>&,
                                             const State<V>& grad, V* dgates) {
    const V z = saved[0], n = saved[2], one(1);
    dgates[2] = grad.h * (one - z) * (one - n * n);
    return grad;
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V* saved, const State<V>& prev, const State<V>&,
                                             const State<V>& grad, const V& grad_operand, V* dgates) {
    const V z = saved[0], r = saved[1], n = saved[2], one(1);
    // Each product begins with factors of at most 1, so that none overflows where the gradient does not.
    dgates[0] = r * (one - r) * prev.h * grad_operand;
    dgates[1] = z * (one - z) * (prev.h - n) * grad.h;
    return {grad.h * z + r * grad_operand, V()};
  }
};

}  // namespace seqkernels::cells
