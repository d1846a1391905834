// Gated recurrent unit with the reset gate applied after the product, as cuDNN and torch.nn.GRU have it.
//   Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014 (arXiv:1406.1078, version 1).
//
//   r = sigmoid(x W_ir^T + b_ir + h_prev W_hr^T + b_hr)        hn = h_prev W_hn^T + b_hn
//   z = sigmoid(x W_iz^T + b_iz + h_prev W_hz^T + b_hz)        n  = tanh(x W_in^T + b_in + r hn)
//                                                              h  = (1 - z) n + z h_prev
#pragma once
#include "cell.h"

namespace seqkernels::cells {

struct Gru : OneStage<3, 4> {
  static constexpr const char* kName = "gru";
  // dgates are [n of the input side | r | z | n of the hidden side]: the input side reads the first three blocks,
  // the hidden side the last three.
  static constexpr int kDgates = 4;
  static constexpr bool kHasCellState = false, kBackwardReadsH = true;
  SEQKERNELS_INLINE static constexpr int input_dgate(int gate) { return (gate + 1) % 3; }
  SEQKERNELS_INLINE static constexpr int hidden_dgate(int gate) { return gate + 1; }

  template <class V>
  SEQKERNELS_INLINE static State<V> forward(Stage<0>, const V* input_gates, const V* hidden_gates, const State<V>& prev,
                                            V* saved) {
    const V r = sigmoid(input_gates[0] + hidden_gates[0]);
    const V z = sigmoid(input_gates[1] + hidden_gates[1]);
    const V hn = hidden_gates[2];
    const V n = tanh(input_gates[2] + r * hn);
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = hn;
    return {n + z * (prev.h - n), V()};
  }

  template <class V>
  SEQKERNELS_INLINE static State<V> backward(Stage<0>, const V* saved, const State<V>& prev, const State<V>&,
                                             const State<V>& grad, V* dgates) {
    const V r = saved[0], z = saved[1], n = saved[2], hn = saved[3], one(1);
    const V dn = grad.h * (one - z) * (one - n * n);
    dgates[0] = dn;
    // Each product begins with factors of at most 1, so that none overflows where the gradient does not.
    dgates[1] = r * (one - r) * hn * dn;
    dgates[2] = z * (one - z) * (prev.h - n) * grad.h;
    dgates[3] = dn * r;
    return {grad.h * z, V()};
  }
};

// With layer normalisation on both sides of each gate: r and z share a mean and variance, n has its own, as in the equations
// of the supplement of Ba, Kiros, Hinton, "Layer Normalization", 2016 (arXiv:1607.06450).
struct GruLayerNorm : Gru {
  static constexpr const char* kName = "gru_layer_norm";
  static constexpr Norm kNorm = Norm::kSides;
  static constexpr int kNormGroups = 2;
  SEQKERNELS_INLINE static constexpr int norm_group(int gate) { return gate / 2; }
};

}  // namespace seqkernels::cells
