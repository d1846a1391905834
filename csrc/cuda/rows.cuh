// What the matrix products around the time loop need of rows. T is the element type.
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

// The state that each row's step began with, [D, R, H]: the output of the step before, or h0. dW_hh = dgates^T times it. The
// shape's hidden units are those of h here.
template <class T>
SEQKERNELS_KERNEL copy_previous_states_kernel(const Shape shape, const void* output, const void* h0, void* previous) {
  for (int64_t time = block_index(); time < shape.seq_len; time += grid_threads() / block_threads()) {
    const int active = shape.active(time);
    const int64_t first_row = shape.first_row(time), values = static_cast<int64_t>(active) * shape.hidden;
    for (int direction = 0; direction < shape.directions; ++direction) {
      const int64_t before = direction == 0 ? time - 1 : time + 1;
      const int active_before = before >= 0 && before < shape.seq_len ? shape.active(before) : 0;
      const int64_t row_before = active_before > 0 ? shape.first_row(before) : 0;
      for (int64_t i = thread_index(); i < values; i += block_threads()) {
        const UnitCoord at{direction, static_cast<int>(i / shape.hidden), static_cast<int>(i % shape.hidden)};
        const int64_t to = (direction * shape.rows + first_row) * shape.hidden + i;
        const T* const from =
            at.column < active_before
                ? static_cast<const T*>(output) + output_index(shape, at, row_before + at.column, shape.hidden, at.unit)
                : static_cast<const T*>(h0) + state_index(shape, at, shape.hidden, at.unit);
        static_cast<T*>(previous)[to] = *from;
      }
    }
  }
}

// The operand of a stage after the first one, [D, R, H], made once more from what was saved; `previous` is the state that each
// row's step began with, as above, and of no use to who has c.
template <class Cell, class T, int stage>
SEQKERNELS_KERNEL make_operands_kernel(const Shape shape, const void* gates, const void* previous, void* operands,
                                       const void* cells) {
  using V = Value<Real<T>, is_short<T>>;
  const int64_t values = shape.directions * shape.rows * shape.hidden;
  for (int64_t i = static_cast<int64_t>(block_index()) * block_threads() + thread_index(); i < values;
       i += grid_threads()) {
    const int64_t row = i / shape.hidden;  // of both directions
    const int64_t first = row * Cell::kSaved * shape.padded + i % shape.hidden;
    V saved[Cell::kSaved];
    SEQKERNELS_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = read<T>(gates, first + k * shape.padded);
    cells::State<V> before{V(0), V(0)}, now{V(0), V(0)};
    if constexpr (Cell::kHasCellState)
      now.c = static_cast<const Real<T>*>(cells)[row * shape.padded + i % shape.hidden];
    else
      before.h = read<T>(previous, i);
    write<T>(operands, i, Cell::operand(cells::Stage<stage>(), saved, before, now).v);
  }
}

}  // namespace seqkernels::cuda
