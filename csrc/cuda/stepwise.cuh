// One launch an iteration, after a matrix product that the host asked torch for: any size, any element type, any device. The
// iterations are those of the persistent kernels (pointwise.cuh); what stays on chip there lies in buffers here.
//
// T is the pass's element type, R what its arithmetic is done in (numbers.cuh).
#pragma once
#include "transition.cuh"

namespace seqkernels::cuda {

// `stage`: whose product the iteration has. A pass with what happens between steps, where that may be nothing.
template <class Pass, int stage>
SEQKERNELS_KERNEL SEQKERNELS_LAUNCH_BOUNDS(kStepThreads, 1)
    stepwise_kernel(const typename Pass::Problem p, const StepBuffers buffers, const int64_t iteration) {
  using R = typename Pass::R;
  using T = typename Pass::Element;
  using Iteration = typename Pass::template Iteration<stage>;
  constexpr int kTiles = Iteration::kTiles, kFollows = Iteration::kFollows;
  constexpr int kPublished = Pass::template Iteration<Iteration::kNext>::kReads;
  using Units = typename Pass::Units;
  const int64_t units = static_cast<int64_t>(p.shape.directions) * p.shape.batch * Units::most(p);
  const int64_t step = Pass::step_of(p, iteration);
  for (int64_t i = static_cast<int64_t>(block_index()) * block_threads() + thread_index(); i < units;
       i += grid_threads()) {
    const int64_t sequence = i / Units::most(p);  // of both directions
    UnitCoord at{static_cast<int>(sequence / p.shape.batch), static_cast<int>(sequence % p.shape.batch),
                 static_cast<int>(i % Units::most(p))};
    at.output = at.unit;
    // State of the unit is at index i. A sequence's products of all stages begin at the same place, for what is set to zero there
    // is to stay so; blocks that are published lie without gaps.
    R* const h = static_cast<R*>(buffers.h) + i;
    R* const c = static_cast<R*>(buffers.c) + i;
    R* const products = static_cast<R*>(buffers.product) + sequence * kTiles * Units::most(p) + at.unit;
    typename Pass::State state = iteration == 0 ? Pass::initial(p, at) : Pass::resumed(p, at, *h, *c);
    const auto for_carried = [&](const auto& visit) {
      R* const carried = static_cast<R*>(buffers.carried) + i;
      if constexpr (Pass::kCarried > 0)
        for (int k = 0; k < Pass::kCarried; ++k) visit(state.carried[k], carried[k * units]);
      if constexpr (Pass::kKeeps)
        for (int k = 0; k < 2; ++k) visit(state.kept[k], carried[k * units]);
    };
    if (iteration > 0) for_carried([](R& value, const R& carried) { value = carried; });
    const bool exists = Units::template has<kFollows>(p, at);
    const int made = Units::template made<kFollows>(p);
    R product[kTiles] = {}, published[kPublished] = {};
    for (int tile = 0; tile < kTiles && exists; ++tile) product[tile] = products[static_cast<int64_t>(tile) * made];

    const int64_t time = Pass::time_of(p, at.direction, step);
    if (exists && Pass::has_step(p, iteration) && at.column < p.shape.active(time)) {
      const Walk walk = Pass::walk(p, at.direction, step);
      auto inputs = Pass::inputs_of(p, typename Pass::Reader(p, at, time).template load<kFollows>(p, walk, at, 0));
      const auto biases = Pass::load_biases(p, at.direction, at.unit);
      const auto results = Pass::template step<kFollows>(biases, inputs, product, state, published);
      typename Pass::Writer(p, at, time).template write<kFollows>(p, 0, state, results);
    } else if (exists) {
      Pass::template idle<kFollows>(product, state, published);
      // The next product may leave out rows that have no step.
      for (int tile = 0; tile < kTiles; ++tile) products[static_cast<int64_t>(tile) * made] = 0;
    }
    if (iteration == Pass::steps(p) * Pass::kStages) {
      Pass::finish(p, at, state);
    } else {
      *h = state.h, *c = state.c;
      for_carried([](const R& value, R& carried) { carried = value; });
      for (int block = 0; block < kPublished && exists; ++block)
        write<T>(buffers.published, (sequence * kPublished + block) * made + at.unit, published[block]);
    }
  }
}

}  // namespace seqkernels::cuda
