// The interface between the bindings (which know torch) and the kernels (which know one ISA and raw pointers).
//
// One call runs one layer in all its directions. A team of threads enters the same kernel together, each as a Member;
// what they share (weights, gradients, scratch) is in the arguments they are handed.
//
// Sizes: T steps, B sequences, I inputs, H hidden units, P units of h (H without a projection), G gates, D directions, R =
// rows, the (step, sequence) pairs: T B of them, or fewer in a packed sequence. Row offsets[t] + b is sequence b at step t.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "../kinds.h"

namespace seqkernels {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// A tensor of one row of features per (step, sequence): element f of sequence b at step t is at
// data + step(t) + b * batch_stride + f.
struct RowTensor {
  char* data;            // null: absent
  int64_t step_stride;   // elements; not used in a packed sequence
  int64_t batch_stride;  // elements
};

struct LayerShape {
  int64_t seq_len, batch, input_size, hidden_size, output_size, directions;
  const int64_t* offsets;  // [T + 1] first row of every step
  bool packed;
  // Of sequences with lengths of their own in padded tensors: which of them is b, the longest first, [B], and the steps of the
  // tensors, of which T is those of the longest sequence. Else null: b is the sequence itself.
  const int64_t* order = nullptr;
  int64_t padded_len = 0;
  bool reverse = false;  // the only direction goes from the last step to the first one
};

// Zoneout (Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", 2017, arXiv:1606.01305).
struct Zoneout {
  RowTensor keeps;  // bool [.., D units], true where a unit keeps the value it had before the step; null: in proportion
  double rate;      // then a unit keeps so much of that value
};

// What happens to states between steps, beside the cell.
struct Transition {
  RowTensor resets;      // bool, one a row: nothing passes from the step before to this one; data null: always
  char* recurrent_mask;  // [D, B, P] factors of h where it meets W_hh, or null
  Zoneout zoneout_h, zoneout_c;
};

// Weights of one direction, or their gradients: contiguous; null where there is none, or not asked for.
template <class P>
struct WeightPointers {
  P of[kWeightKinds];
  P operator[](WeightKind kind) const { return of[kind]; }
};
using Weights = WeightPointers<const char*>;
using WeightGrads = WeightPointers<char*>;

struct Team;

// What forward and backward kernels of a layer have in common.
struct LayerArguments {
  LayerShape shape;
  RowTensor x;       // [.., I]
  RowTensor output;  // [.., D P]; written by forward, read by backward
  char* h0;          // [D, B, P]; forward: or null, zeros
  char* c0;          // [D, B, H]; forward: or null, zeros; null without cell state
  Weights weights[2];
  Transition transition;
  double norm_eps;  // of a normalised cell, as all that is named norm
  char* gates;      // [D, R, saved, Hp] or null: nothing is saved
  char* cells;      // [D, R, Hp] compute type, or null
  char* norms;      // [D, R, norms] compute type, or null
  int threads;      // no team has more members
  char* workspace;  // as many bytes as forward_workspace() or backward_workspace() say
  Team* team;
};

struct ForwardArguments : LayerArguments {
  char* h_n;              // [D, B, P]
  char* c_n;              // [D, B, H] or null
  RowTensor cell_states;  // [.., D H] c of every step, or null
};

struct BackwardArguments : LayerArguments {
  RowTensor grad_output;  // [.., D P]
  RowTensor grad_cells;   // [.., D H] of c of every step
  char* grad_h_n;         // [D, B, P] or null
  char* grad_c_n;         // [D, B, H] or null
  char* grad_x;           // [R, I] or null
  char* grad_h0;          // [D, B, P] or null
  char* grad_c0;          // [D, B, H] or null
  WeightGrads grads[2];
};

// A layer with packed weights; float32 tensors. `packed` is, per direction, 32-bit packs in panels of `lanes` hidden
// units: of each stage, one after another, [panels][vectors + packs of I + packs of H][gates of the stage][lanes]. The vectors are
// float32: b_ih, b_hh, then norm_ih and norm_hh as far as the cell has them. A pack of the rest is one float32 weight or, low
// half first, two bfloat16 weights that follow each other in K. Padding is zero. Panels of a projection have neither biases nor
// packs of I, those of the norm of c the vectors norm_c and norm_c_bias alone. K of W_hh is P.
struct FrozenArguments {
  int64_t seq_len, batch, input_size, hidden_size, output_size, directions;
  const float* packed[2];
  RowTensor x;       // [.., I]
  RowTensor output;  // [.., D P]
  const float* h0;   // [D, B, P] or null: zeros
  const float* c0;   // [D, B, H] or null: zeros
  float* h_n;        // [D, B, P]; may be the output
  float* c_n;        // [D, B, H]; not used by a cell without cell state
  float* scratch;    // what stages hand on: as many numbers as FrozenKernels::scratch says
  double norm_eps;   // of a normalised cell
  Team* team;
};

// Flags of which each is true where sixteen random bits are `last` or less.
struct RandomFlagsArguments {
  uint64_t seed;
  uint16_t last;
  int64_t count;
  uint8_t* flags;
};

// One thread of a team, as a kernel sees it.
struct Member {
  int rank, size;
};

// The kernels of one cell and storage type.
struct LayerKernels {
  int64_t (*forward_workspace)(const ForwardArguments&);
  void (*forward)(const ForwardArguments&, Member);
  int64_t (*backward_workspace)(const BackwardArguments&);
  void (*backward)(const BackwardArguments&, Member);
};

// The kernels of one cell for each type of packed weights.
struct FrozenKernels {
  int64_t (*scratch)(const FrozenArguments&);  // in numbers
  void (*float32)(const FrozenArguments&, Member);
  void (*bfloat16)(const FrozenArguments&, Member);
};

// What an ISA offers.
struct KernelTable {
  const char* isa;
  int lanes;  // float32 numbers of a vector
  LayerKernels cells[kCellKinds][int(DType::kCount)];
  FrozenKernels frozen[kCellKinds];
  void (*random_flags)(const RandomFlagsArguments&, Member);
};

// What an ISA offers that extends another one for bfloat16 alone.
struct Bf16Kernels {
  const char* isa;
  LayerKernels cells[kCellKinds];
};

const KernelTable& baseline_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const Bf16Kernels& avx512bf16_kernels();
const Bf16Kernels& amx_kernels();

}  // namespace seqkernels
