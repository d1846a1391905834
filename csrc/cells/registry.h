// Every cell of the library, once. Kinds, names and sizes (kinds.h), op schemas (layer_ops.cpp), the kernel tables of every
// device, and what Python knows of cells are made from this list.
#pragma once
#include "gru.h"
#include "gru_reset_before.h"
#include "lstm.h"
#include "lstm_layer_norm.h"
#include "rnn.h"

namespace seqkernels::cells {

template <class... Cells>
struct CellList {
  static constexpr int kCount = sizeof...(Cells);
};

template <class A, class B>
constexpr bool kIsSame = false;
template <class A>
constexpr bool kIsSame<A, A> = true;

// The build reads this line: it compiles cuda/cell.cu once for each name.
using Registry = CellList<Lstm, LstmProjected, LstmLayerNorm, LstmLayerNormJoint, Gru, GruResetBefore, GruLayerNorm,
                          RnnTanh, RnnRelu>;

}  // namespace seqkernels::cells
