// One launch a step, after a matrix product that the host asked torch for: any size, any element type, any device. The
// iterations are those of the persistent kernels (pointwise.cuh); what stays on chip there lies in buffers here.
//
// T is the pass's element type, R what its arithmetic is done in (numbers.cuh).
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

template <class Pass>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kStepThreads, 1)
    stepwise_kernel(const typename Pass::Problem p, const StepBuffers buffers, const int64_t iteration) {
  using R = typename Pass::R;
  using T = typename Pass::Element;
  const int64_t units = static_cast<int64_t>(p.shape.directions) * p.shape.batch * p.shape.hidden;
  const int64_t step = Pass::step_of(p, iteration);
  for (int64_t i = static_cast<int64_t>(block_index()) * block_threads() + thread_index(); i < units;
       i += grid_threads()) {
    const int64_t sequence = i / p.shape.hidden;  // of both directions
    const UnitCoord at{static_cast<int>(sequence / p.shape.batch), static_cast<int>(sequence % p.shape.batch),
                       static_cast<int>(i % p.shape.hidden)};
    // State of the unit is at index i; blocks of H values at (sequence * blocks + block) * H + unit.
    R* const h = static_cast<R*>(buffers.h) + i;
    R* const c = static_cast<R*>(buffers.c) + i;
    R* const products = static_cast<R*>(buffers.product) + sequence * Pass::kTiles * p.shape.hidden + at.unit;
    typename Pass::State state = iteration == 0 ? Pass::initial(p, at) : typename Pass::State{*h, *c};
    R product[Pass::kTiles], published[Pass::kPublished];
    for (int tile = 0; tile < Pass::kTiles; ++tile)
      product[tile] = products[static_cast<int64_t>(tile) * p.shape.hidden];

    const int64_t time = Pass::time_of(p, at.direction, step);
    if (Pass::has_step(p, iteration) && at.column < p.shape.active(time)) {
      const auto inputs = typename Pass::Reader(p, at, time).load(p, Pass::walk(p, at.direction, step), at, 0);
      const auto results = Pass::step(Pass::load_biases(p, at.direction, at.unit), inputs, product, state, published);
      typename Pass::Writer(p, at, time).write(p, 0, state, results);
    } else {
      Pass::idle(product, state, published);
      // The next product may leave out rows that have no step.
      for (int tile = 0; tile < Pass::kTiles; ++tile) products[static_cast<int64_t>(tile) * p.shape.hidden] = 0;
    }
    if (iteration == Pass::steps(p)) {
      Pass::finish(p, at, state);
    } else {
      *h = state.h, *c = state.c;
      for (int block = 0; block < Pass::kPublished; ++block)
        write<T>(buffers.published, (sequence * Pass::kPublished + block) * p.shape.hidden + at.unit, published[block]);
    }
  }
}

}  // namespace seqkernels::cuda
