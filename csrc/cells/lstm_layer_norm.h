// Long short-term memory with layer normalisation of the gates and of the cell state.
//   Ba, Kiros, Hinton, "Layer Normalization", 2016 (arXiv:1607.06450), equations 20 to 22; of their sum of biases, those
//   of the norms alone are there.
//
//   [i f g o] = LN(x W_ih^T; w_ih) + b_ih + LN(h_prev W_hh^T; w_hh) + b_hh
//   c = sigmoid(f) c_prev + sigmoid(i) tanh(g)
//   h = sigmoid(o) tanh(LN(c; w_c) + b_c)
#pragma once
#include "lstm.h"

namespace seqkernels::cells {

struct LstmLayerNorm {
  static constexpr const char* kName = "lstm_layer_norm";
  // The first stage makes c, the second one normalises it and makes h. Saved are [o, i, f, g | tanh of the norm of c]: the
  // second stage reads o. The last block of dgates is the gradient of the norm of c.
  static constexpr int kGates = 4, kSaved = 5, kDgates = 5;
  static constexpr int kStages = 2, kStageGates[] = {4, 1}, kStageSaved[] = {4, 1}, kCarried = 1;
  static constexpr bool kIsProjected = false, kHasCellState = true, kBackwardReadsH = false;
  static constexpr Norm kNorm = Norm::kSides;
  static constexpr int kNormGroups = 1;
  static constexpr bool kNormalizesCell = true;
  SEQKERNELS_INLINE static constexpr int input_dgate(int gate) { return gate; }
  SEQKERNELS_INLINE static constexpr int hidden_dgate(int gate) { return gate; }
  SEQKERNELS_INLINE static constexpr int norm_group(int) { return 0; }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<0>, const V* input_gates, const V* hidden_gates, const State<V>& prev,
                                            V* saved) {
    const V i = sigmoid(input_gates[0] + hidden_gates[0]);
    const V f = sigmoid(input_gates[1] + hidden_gates[1]);
    const V g = tanh(input_gates[2] + hidden_gates[2]);
    const V o = sigmoid(input_gates[3] + hidden_gates[3]);
    saved[0] = o, saved[1] = i, saved[2] = f, saved[3] = g;
    return {V(0), f * prev.c + i * g};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<1>, const V*, const V* hidden_gates, const State<V>& prev, V* saved) {
    const V o = saved[0], tanh_c = tanh(hidden_gates[4]);
    saved[4] = tanh_c;
    return {o * tanh_c, prev.c};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<1>, const V* saved, const State<V>&, const State<V>&,
                                             const State<V>& grad, V* dgates) {
    const V o = saved[0], tanh_c = saved[4], one(1);
    dgates[4] = grad.h * o * (one - tanh_c * tanh_c);
    return grad;
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V* saved, const State<V>& prev, const State<V>&,
                                             const State<V>& grad, const V& grad_operand, V* dgates) {
    const V o = saved[0], i = saved[1], f = saved[2], g = saved[3], tanh_c = saved[4];
    const V dc = grad.c + grad_operand;
    lstm_dgates(i, f, g, o, tanh_c, prev.c, grad.h, dc, dgates);
    return {V(0), dc * f};
  }
};

// With the sum of both sides normalised, and the new c replaced by its norm, as the LSTM of torchaudio's RNN-T predictor:
//
//   [i f g o] = LN(x W_ih^T + h_prev W_hh^T; w_hh) + b_ih + b_hh
//   c = LN(sigmoid(f) c_prev + sigmoid(i) tanh(g); w_c) + b_c
//   h = sigmoid(o) tanh(c)
struct LstmLayerNormJoint : LstmLayerNorm {
  static constexpr const char* kName = "lstm_layer_norm_joint";
  static constexpr Norm kNorm = Norm::kSum;
  using LstmLayerNorm::backward, LstmLayerNorm::forward;

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<1>, const V*, const V* hidden_gates, const State<V>&, V* saved) {
    const V o = saved[0], c = hidden_gates[4], tanh_c = tanh(c);
    saved[4] = tanh_c;
    return {o * tanh_c, c};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<1>, const V* saved, const State<V>&, const State<V>&,
                                             const State<V>& grad, V* dgates) {
    const V o = saved[0], tanh_c = saved[4], one(1);
    dgates[4] = grad.c + grad.h * o * (one - tanh_c * tanh_c);
    return {grad.h, V(0)};
  }
};

}  // namespace seqkernels::cells
