// A recurrent module as it was when it was frozen: its own packed copy of the weights, and forward passes with it.
#pragma once
#include <memory>
#include <vector>

#include "../api.h"
#include "memory.h"
#include "stack.h"

namespace seqkernels {

// Parameters of a layer's direction.
inline int frozen_parameters(CellKind cell) { return cell_info(cell).weights(true); }

class SEQKERNELS_API Frozen {
 public:
  // Per layer and direction w_ih [G H, I], w_hh [G H, P] of the weights' type, float32 b_ih, b_hh [G H] or null, and what the cell has
  // beside them: w_hr [P, H], float32 norms. I is D P after the first layer. Packed for the kernels that are in use now, which stay
  // those of this object.
  Frozen(CellKind cell, DType weights, const StackSizes& sizes, const std::vector<const void*>& parameters);

  // Unpacks the weights: fills tensors like those it was made from, without null.
  void unpack(const std::vector<void*>& parameters) const;

  // float32, of the sizes that this was made for; h_n may be the output. From any number of threads at once.
  void run(const StackCall& call) const;

  double work(int64_t rows) const;  // of a call, in multiply-adds

 private:
  struct PackedDirection {  // of one layer
    int64_t input_size;
    int64_t begin;  // in packs from the first of packed_
  };
  template <class W, class Move>  // W: the weights' type, packed and plain
  void each_weight(const PackedDirection& direction, void* const* parameters, const Move& move) const;
  template <class Move>
  void each(void* const* parameters, const Move& move) const;

  const KernelTable& kernels_;
  const CellKind cell_;
  const DType weights_;
  const StackSizes sizes_;
  std::vector<PackedDirection> directions_;  // [L D]
  float* packed() const { return reinterpret_cast<float*>(packed_.get()); }
  Memory packed_;
  int64_t packs_ = 0;  // of all layers; a bias takes one, too
};

}  // namespace seqkernels
