// A recurrent module as it was when it was frozen: its own packed copy of the weights, and forward passes with it.
#pragma once
#include <memory>
#include <vector>

#include "kernels.h"

namespace seqkernels {

struct FrozenSizes {
  int64_t input_size, hidden_size, layers, directions;
};

class Frozen {
 public:
  // Per layer and direction w_ih [G H, I], w_hh [G H, H] of the weights' type and float32 b_ih, b_hh [G H] or null; I is
  // D H after the first layer. Packed for the kernels that are in use now, which stay those of this object.
  Frozen(CellKind cell, DType weights, const FrozenSizes& sizes, const std::vector<const void*>& parameters);

  // The other way: fills tensors like those it was made from, without null.
  void unpack(const std::vector<void*>& parameters) const;

  struct Call {
    const float *x, *h0, *c0;   // [T, B, I], [L D, B, H]; h0 and c0 null: zeros
    float *output, *h_n, *c_n;  // [T, B, D H], [L D, B, H]; h_n may be the output; c_n not used without cell state
    int64_t seq_len, batch;
    bool batch_first;  // x and output are [B, T, ..]
  };
  // From any number of threads at once.
  void run(const Call& call) const;

  // Whether a call of so many rows is long enough for threads, Python's others among them, to be worth the trouble.
  bool is_large(int64_t rows) const;

 private:
  struct Pack {  // one direction of one layer
    int64_t input_size;
    int64_t begin;  // in packed_
  };
  double work(int64_t rows) const;  // multiply-adds
  template <class W, class Move>
  void each_weight(const Pack& pack, void* const* parameters, const Move& move) const;
  template <class Move>
  void each(void* const* parameters, const Move& move) const;

  const KernelTable& kernels_;
  const CellKind cell_;
  const DType weights_;
  const FrozenSizes sizes_;
  std::vector<Pack> packs_;  // [L D]
  struct Free {
    void operator()(float* words) const;
  };
  std::unique_ptr<float[], Free> packed_;
  int64_t words_ = 0;
};

}  // namespace seqkernels
