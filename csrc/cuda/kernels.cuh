// The table of one cell's kernels.
#pragma once
#include <type_traits>
#include <utility>

#include "backward.cuh"
#include "forward.cuh"
#include "kernels.h"
#include "normalized_backward.cuh"
#include "normalized_forward.cuh"
#include "persistent_kernels.cuh"
#include "rows.cuh"
#include "stepwise.cuh"

namespace seqkernels::cuda {

template <class Pass, int stage>
StageKernels stage_kernels() {
  using Cell = typename Pass::Cell;
  using Iteration = typename Pass::template Iteration<stage>;
  StageKernels kernels{StageOf<Cell, stage>::kFirstGate,
                       StageOf<Cell, stage>::kIsProjection,
                       Iteration::kTiles,
                       Iteration::kReads,
                       StageOf<Cell, Iteration::kFollows>::kIsProjection,
                       StageOf<Cell, Iteration::kPublisher>::kIsProjection};
  kernels.stepwise = reinterpret_cast<const void*>(&stepwise_kernel<WithTransition<Pass>, stage>);
  if constexpr (stage > 0)
    kernels.operands = reinterpret_cast<const void*>(&make_operands_kernel<Cell, typename Pass::Element, stage>);
  return kernels;
}

template <class Pass, int... stages>
PassKernels stepwise_only(std::integer_sequence<int, stages...>) {
  return {Pass::kStages, {stage_kernels<Pass, stages>()...}, Pass::kIsBackward, 1};
}
template <class Pass>
PassKernels stepwise_only() {
  return stepwise_only<Pass>(StagesOf<Pass>());
}

template <class Pass, class Operand, Form form, int... stages>
void add_products(PassKernels& kernels, std::integer_sequence<int, stages...>) {
  ((kernels.stage[stages].depth[int(form)] = {PersistentProduct<Pass, Operand, form, stages>::kResident,
                                              PersistentProduct<Pass, Operand, form, stages>::kAhead}),
   ...);
}

template <class Pass, class Operand>
PassKernels with_persistent() {
  using First = PersistentProduct<Pass, Operand, Form::kOneQuarter, 0>;
  PassKernels kernels = stepwise_only<Pass>();
  kernels.chunk = First::Weights::kChunk;
  kernels.persistent = &persistent_kernel_for<Pass, Operand>;
  kernels.layout = &layout_for<Pass, Operand>;
  kernels.on_tensor_cores = First::Product::kOnTensorCores;
  kernels.column_tiles = max_column_tiles<Pass, Operand, Form::kSeveral>(StagesOf<Pass>());
  kernels.block_tiles = max_tiles<Pass, Operand>(StagesOf<Pass>());
  add_products<Pass, Operand, Form::kOneQuarter>(kernels, StagesOf<Pass>());
  add_products<Pass, Operand, Form::kSeveral>(kernels, StagesOf<Pass>());
  add_products<Pass, Operand, Form::kTwoTeams>(kernels, StagesOf<Pass>());
  return kernels;
}

template <class Row, class Cell>
PassKernels normalized(int tiles, int published, bool is_backward) {
  const void* const step = reinterpret_cast<const void*>(&normalized_kernel<Row>);
  PassKernels kernels{1, {{0, false, tiles, published, false, false, step}}, is_backward, 1};
  kernels.norm_gradients = reinterpret_cast<const void*>(&norm_gradients_kernel<Cell, typename Row::Element>);
  return kernels;
}

// Of a cell that is not normalised.
template <class Cell, class Element, class Operand>
CellKernels persistent_with_transition() {
  using Forward = WithTransition<cuda::Forward<Cell, Element>>;
  using Backward = WithTransition<cuda::Backward<Cell, Element>>;
  CellKernels kernels{};
  kernels.forward.persistent = &persistent_kernel_for<Forward, Operand>;
  kernels.forward.layout = &layout_for<Forward, Operand>;
  kernels.backward.persistent = &persistent_kernel_for<Backward, Operand>;
  kernels.backward.layout = &layout_for<Backward, Operand>;
  return kernels;
}

template <class Cell, class Element, class Operand = void>
CellKernels both_passes() {
  if constexpr (Cell::kNorm != cells::Norm::kNone)
    return {normalized<NormalizedForward<Cell, Element>, Cell>(Cell::kGates, 1, false),
            normalized<NormalizedBackward<Cell, Element>, Cell>(1, Cell::kGates, true)};
  else if constexpr (std::is_void_v<Operand>)
    return {stepwise_only<Forward<Cell, Element>>(), stepwise_only<Backward<Cell, Element>>()};
  else
    return {with_persistent<Forward<Cell, Element>, Operand>(), with_persistent<Backward<Cell, Element>, Operand>()};
}

// The kernels of each dtype.
struct KernelsByDType {
  CellKernels float32, float32_as_tf32, float64, bfloat16, float16;

  const CellKernels& of(DType dtype, bool tf32) const {
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
};

template <class Cell>
const CellKernels& kernels_of(DType dtype, bool tf32) {
  static const KernelsByDType kernels{both_passes<Cell, float, float>(), both_passes<Cell, float, TFloat32>(),
                                      both_passes<Cell, double>(), both_passes<Cell, BFloat16, BFloat16>(),
                                      both_passes<Cell, Float16, Float16>()};
  return kernels.of(dtype, tf32);
}

template <class Cell>
const CellKernels& transition_kernels_of(DType dtype, bool tf32) {
  if constexpr (Cell::kNorm != cells::Norm::kNone) {
    static const CellKernels none{};
    return none;
  } else {
    static const KernelsByDType kernels{persistent_with_transition<Cell, float, float>(),
                                        persistent_with_transition<Cell, float, TFloat32>(), CellKernels{},
                                        persistent_with_transition<Cell, BFloat16, BFloat16>(),
                                        persistent_with_transition<Cell, Float16, Float16>()};
    return kernels.of(dtype, tf32);
  }
}

}  // namespace seqkernels::cuda
