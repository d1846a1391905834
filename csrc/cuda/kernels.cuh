// The table of one cell's kernels.
#pragma once
#include <type_traits>
#include <utility>

#include "backward.cuh"
#include "forward.cuh"
#include "kernels.h"
#include "persistent.cuh"
#include "rows.cuh"
#include "stepwise.cuh"

namespace seqkernels::cuda {

template <class Pass, int stage>
StageKernels stage_kernels() {
  using Iteration = typename Pass::template Iteration<stage>;
  StageKernels kernels{StageOf<typename Pass::Cell, stage>::kFirstGate, Iteration::kTiles, Iteration::kReads};
  kernels.stepwise = reinterpret_cast<const void*>(&stepwise_kernel<Pass, stage>);
  if constexpr (stage > 0)
    kernels.operands =
        reinterpret_cast<const void*>(&make_operands_kernel<typename Pass::Cell, typename Pass::Element, stage>);
  return kernels;
}

template <class Pass, int... stages>
PassKernels stepwise_only(std::integer_sequence<int, stages...>) {
  return {Pass::kStages, {stage_kernels<Pass, stages>()...}, Pass::kIsBackward, 1};
}
template <class Pass>
PassKernels stepwise_only() {
  return stepwise_only<Pass>(std::make_integer_sequence<int, Pass::kStages>());
}

template <class Pass, class Operand>
PassKernels with_persistent() {
  using Weights = Slice<Operand, Pass::template Iteration<0>::kTiles>;
  PassKernels kernels = stepwise_only<Pass>();
  kernels.chunk = Weights::kChunk;
  kernels.persistent = &persistent_kernel_for<Pass, Operand>;
  kernels.layout = &layout_for<Pass, Operand>;
  kernels.on_tensor_cores = Weights::Product::kOnTensorCores;
  kernels.column_tiles = Weights::Product::kMaxColumnTiles;
  kernels.block_tiles = Weights::Product::kMaxTiles;
  kernels.stage[0].resident_chunks = Weights::kResident;
  kernels.stage[0].chunks_ahead = Weights::Product::kAhead;
  return kernels;
}

template <class Cell, class Element, class Operand = void>
CellKernels both_passes() {
  if constexpr (Cell::kIsProjected)
    return {};  // not written
  else if constexpr (std::is_void_v<Operand> || Cell::kStages > 1)
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
