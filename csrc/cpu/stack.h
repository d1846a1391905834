// A stack of layers without gradients, from plain pointers, layer after layer: of modules that are called around torch's
// dispatcher, and of frozen ones.
#pragma once
#include <vector>

#include "../api.h"
#include "kernels.h"
#include "memory.h"

namespace seqkernels {

struct StackSizes {
  int64_t input_size, hidden_size, output_size, layers, directions;  // output_size: units of h
};

// What a step of one sequence takes, in multiply-adds, added up over the layers and directions of a stack.
SEQKERNELS_API double work_of(CellKind cell, const StackSizes& sizes);

struct StackCall {
  StackSizes sizes;
  double norm_eps;  // of a normalised cell
  DType dtype;
  int64_t seq_len, batch;
  RowTensor x;                            // [T, B, I]
  char *h0, *c0;                          // [L D, B, P] and [L D, B, H]; null: zeros
  char* output;                           // [T, B, D P]
  char *h_n, *c_n;                        // as h0 and c0; c_n not used without cell state
  RowTensor resets;                       // bool [T, B], or null: nothing passes from the step before to this one
  double zoneout_h_rate, zoneout_c_rate;  // how much of its value before a step a unit keeps
  char* cell_states;                      // [T, B, D H] c of every step of the last layer, or null
};

// One layer's part of a call; the states are those of the layer alone.
struct LayerCall {
  int64_t index, input_size;
  RowTensor x, output, cell_states;
  char *h0, *c0, *h_n, *c_n;
};

// A call taken apart into layers. It holds what one layer leaves to the next, in two buffers that take turns.
class Stack {
 public:
  explicit Stack(const StackCall& call);

  template <class Run>
  void for_layers(const Run& run) const {
    for (int64_t layer = 0; layer < call_.sizes.layers; ++layer) run(layer_call(layer));
  }

 private:
  LayerCall layer_call(int64_t layer) const;

  const StackCall call_;
  const int64_t width_, buffer_bytes_, h_bytes_, c_bytes_;  // of a layer
  Memory between_;
};

// With the weights of all layers and directions as they are in the modules, [L D].
SEQKERNELS_API void run_stack(CellKind cell, const StackCall& call, const std::vector<Weights>& weights);

}  // namespace seqkernels
