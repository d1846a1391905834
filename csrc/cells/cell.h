// What every cell gives to the time loops.
//
// A cell is a stateless struct that knows the pointwise part of one time step, forward and backward, and nothing of
// memory, threads or matrices. It is templated on the value type V: a SIMD vector of hidden units on the CPU, one
// float in a CUDA thread. V needs + - * and unary minus, and `sigmoid`, `tanh`, `relu`, `relu_grad` found by overload.
//
//   kName            the name it has in Python, in the ops and in messages
//   kGates           blocks of H rows in weight_ih and weight_hh
//   kSaved           values per unit that `forward` saves for `backward` (the reserve)
//   kHasCellState    whether the state has a second half c beside h
//   kBackwardReadsH  whether `backward` reads h of this step or of the previous one
//   kDgates          gradient blocks that `backward` writes; input_dgate / hidden_dgate say which block is the
//                    gradient of gate g of the input side and of the hidden side. They differ only where the two
//                    sides do not simply add up (GRU's n). Each side's blocks are kGates consecutive ones.
//
// forward:   input_gates = x W_ih^T + b_ih and hidden_gates = h_prev W_hh^T + b_hh, both in the order of the weights.
// backward:  `grad` is the gradient of this step's state, complete; `grad_prev` gets what flows to the previous state
//            directly (for h without the product with W_hh, which the loop adds).
#pragma once

#if defined(__CUDACC__)
#define SEQKERNELS_INLINE __host__ __device__ __forceinline__
#else
#define SEQKERNELS_INLINE inline __attribute__((always_inline))
#endif

namespace seqkernels::cells {

template <class V>
struct State {
  V h;
  V c;  // unused where the cell has no cell state
};

}  // namespace seqkernels::cells
