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
// A step is a list of stages, one after another. A stage is a product with rows of W_hh, then a pointwise part:
//   kStages          how many; most cells have one (OneStage)
//   kStageGates      gates of each stage, whose rows of W_hh its product takes: the first ones belong to the first stage
//   kStageSaved      values that each stage saves, likewise
//   kCarried         so many saved values, the first ones, are read by the stages after the one that makes them
//   kIsProjected     whether the last stage is a projection: a product with W_hr [P, H] instead of rows of W_hh, without input
//                    gates and biases, which makes the P units of h. It alone has h then, the other stages have c.
//
// The first stage multiplies h_prev, each later one the operand that the stage before it has made.
//
// Layer normalisation (Ba, Kiros, Hinton, "Layer Normalization", 2016, arXiv:1607.06450) is the loops' part, before the
// pointwise one. With LN(v; w) = w (v - mean v) / sqrt(var v + eps):
//   kNorm              Norm::kSides: input_gates = LN(x W_ih^T; w_ih) + b_ih and hidden_gates = LN(h_prev W_hh^T; w_hh) + b_hh;
//                      Norm::kSum: hidden_gates = LN(x W_ih^T + h_prev W_hh^T; w_hh) + b_hh and input_gates = b_ih
//   kNormGroups        so many parts of the gates have a mean and variance of their own; norm_group(gate): which one a gate
//                      belongs to
//   kNormalizesCell    whether the last stage has no product: its one gate is LN(c; w_c) + b_c, of the c that the stage before it
//                      has left, which its `prev` has too
//
// forward:   input_gates = x W_ih^T + b_ih and hidden_gates = operand W_hh^T + b_hh, both in the order of the weights; those
//            of other stages are undefined. The result is the new state, or of any stage but the last one, in its h, the
//            operand of the next. `operand` makes that once more from what was saved.
// next_c:    of a cell with c that is not normalised, the new c from what forward saved and c before the step.
// backward:  the last stage comes first. `grad` is the gradient of this step's state, complete; `grad_operand`, of all stages
//            but the last, that of the operand which the stage has made. Every stage writes the dgates of its own gates, and
//            returns what is left of the gradient for the stage before it. What the first stage returns flows to the
//            previous state directly (for h without the product with W_hh, which the loop adds).
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

// What is normalised.
enum class Norm { kNone, kSides, kSum };

// What a cell says of normalisation that has none.
struct NotNormalized {
  static constexpr Norm kNorm = Norm::kNone;
  static constexpr int kNormGroups = 0;
  static constexpr bool kNormalizesCell = false;
  SEQKERNELS_INLINE static constexpr int norm_group(int) { return 0; }
};

// Says which stage a function is of.
template <int stage>
struct Stage {};

// What a cell of one stage says of it.
template <int gates, int saved>
struct OneStage : NotNormalized {
  static constexpr int kGates = gates, kSaved = saved;
  static constexpr int kStages = 1, kStageGates[] = {gates}, kStageSaved[] = {saved}, kCarried = 0;
  static constexpr bool kIsProjected = false;
};

// The first gate of a stage, and its first saved value.
template <class Cell>
constexpr int first_gate(int stage) {
  return stage == 0 ? 0 : first_gate<Cell>(stage - 1) + Cell::kStageGates[stage - 1];
}
template <class Cell>
constexpr int first_saved(int stage) {
  return stage == 0 ? 0 : first_saved<Cell>(stage - 1) + Cell::kStageSaved[stage - 1];
}
template <class Cell>
constexpr bool is_projection(int stage) {
  return Cell::kIsProjected && stage == Cell::kStages - 1;
}
template <class Cell>
constexpr bool is_norm(int stage) {
  return Cell::kNormalizesCell && stage == Cell::kStages - 1;
}
// Stages whose gates have a product with x.
template <class Cell>
constexpr int kInputStages = Cell::kStages - Cell::kIsProjected - Cell::kNormalizesCell;
// Whether a stage has units of h, and of c.
template <class Cell>
constexpr bool has_h(int stage) {
  return !Cell::kIsProjected || is_projection<Cell>(stage);
}
template <class Cell>
constexpr bool has_c(int stage) {
  return Cell::kHasCellState && !is_projection<Cell>(stage);
}

// What loops save of a normalised cell, in place of what it saves: of each unit the values of zero mean and unit variance, of
// which they make its gates once more and run its forward again; of each row 1 / sqrt(var + eps) of every group. Both are of the
// input side where that is normalised, then of the hidden side or the sum, then of c.
template <class Cell>
constexpr int kNormSides = Cell::kNorm == Norm::kSides ? 2
                           : Cell::kNorm == Norm::kSum ? 1
                                                       : 0;
template <class Cell>
constexpr int kReserved =
    Cell::kNorm == Norm::kNone ? Cell::kSaved : kNormSides<Cell> * Cell::kGates + Cell::kNormalizesCell;
template <class Cell>
constexpr int kNormsOfRow = kNormSides<Cell> * Cell::kNormGroups + Cell::kNormalizesCell;

// Norms by their index, in this order: how many there are; whether one is that of c; the gates that it is of, how many groups
// these have, and which of them a gate belongs to; and the block of dgates that the cell writes for a gate of it.
template <class Cell>
constexpr int kNorms = kNormSides<Cell> + Cell::kNormalizesCell;
template <class Cell>
SEQKERNELS_INLINE constexpr bool is_norm_of_cell(int norm) {
  return norm == kNormSides<Cell>;
}
template <class Cell>
SEQKERNELS_INLINE constexpr int norm_gates(int norm) {
  return is_norm_of_cell<Cell>(norm) ? 1 : Cell::kGates;
}
template <class Cell>
SEQKERNELS_INLINE constexpr int norm_groups(int norm) {
  return is_norm_of_cell<Cell>(norm) ? 1 : Cell::kNormGroups;
}
template <class Cell>
SEQKERNELS_INLINE constexpr int norm_group(int norm, int gate) {
  return is_norm_of_cell<Cell>(norm) ? 0 : Cell::norm_group(gate);
}
template <class Cell>
SEQKERNELS_INLINE constexpr int norm_dgate(int norm, int gate) {
  if (is_norm_of_cell<Cell>(norm)) return Cell::kDgates - 1;
  return norm == kNormSides<Cell> - 1 ? Cell::hidden_dgate(gate) : Cell::input_dgate(gate);
}

}  // namespace seqkernels::cells
