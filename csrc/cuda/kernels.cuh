// The table of one cell's kernels.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "persistent.cuh"
#include "stepwise.cuh"

namespace seqkernels::cuda {

template <class Pass>
PassKernels stepwise_only() {
  return {Pass::kTiles, Pass::kPublished, 1, reinterpret_cast<const void*>(&stepwise_kernel<Pass>)};
}

template <class Pass, class Operand>
PassKernels with_persistent() {
  using Weights = Slice<Operand, Pass::kTiles>;
  PassKernels kernels = stepwise_only<Pass>();
  kernels.chunk = Weights::kChunk;
  kernels.persistent = &persistent_kernel_for<Pass, Operand>;
  kernels.layout = &layout_for<Pass, Operand>;
  kernels.on_tensor_cores = Weights::Product::kOnTensorCores;
  kernels.column_tiles = Weights::Product::kMaxColumnTiles;
  kernels.block_tiles = Weights::Product::kMaxTiles;
  kernels.resident_chunks = Weights::kResident;
  kernels.chunks_ahead = Weights::Product::kAhead;
  kernels.is_backward = Pass::kIsBackward;
  return kernels;
}

template <class Cell, class Element, class Operand = void>
CellKernels both_passes() {
  if constexpr (Cell::kStages > 1)
    return {};  // not written
  else if constexpr (std::is_void_v<Operand>)
    return {stepwise_only<Forward<Cell, Element>>(), stepwise_only<Backward<Cell, Element>>()};
  else
    return {with_persistent<Forward<Cell, Element>, Operand>(), with_persistent<Backward<Cell, Element>, Operand>()};
}

template <class Cell>
const CellKernels& kernels_of(DType dtype, bool tf32) {
  static const CellKernels float32 = both_passes<Cell, float, float>(),
                           float32_as_tf32 = both_passes<Cell, float, TFloat32>(),
                           float64 = both_passes<Cell, double>(), bfloat16 = both_passes<Cell, BFloat16, BFloat16>(),
                           float16 = both_passes<Cell, Float16, Float16>();
  switch (dtype) {
    case DType::kFloat32:
      return tf32 ? float32_as_tf32 : float32;
    case DType::kFloat64:
      return float64;
    case DType::kBFloat16:
      return bfloat16;
    case DType::kFloat16:
    case DType::kCount:
      break;
  }
  return float16;
}

}  // namespace seqkernels::cuda
