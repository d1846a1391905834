// What the matrix products around the time loop need of rows. T is the element type.
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

// The state that each row's step began with, [D, R, H]: the output of the step before, or h0. dW_hh = dgates^T times it.
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
        const T* const from = at.column < active_before
                                  ? static_cast<const T*>(output) + output_index(shape, at, row_before + at.column)
                                  : static_cast<const T*>(h0) + state_index(shape, at);
        static_cast<T*>(previous)[to] = *from;
      }
    }
  }
}

SEQKERNELS_KERNEL copy_offsets_kernel(const OffsetsPart part, int64_t* offsets) {
  for (int i = thread_index(); i < part.count; i += block_threads()) offsets[part.first + i] = part.values[i];
}

}  // namespace seqkernels::cuda
