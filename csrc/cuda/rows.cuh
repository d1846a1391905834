// What the matrix products around the time loop need of rows. T is the element type.
#pragma once
#include "transition.cuh"

namespace seqkernels::cuda {

// Calls visit(coord, time, place) for the units of all rows, of which [D, R, H] has one at each place. Blocks share the times, and
// if there are more of them, as many share each.
template <class Visit>
SEQKERNELS_DEVICE void for_units_of_rows(const Shape& shape, const Visit& visit) {
  if (shape.seq_len == 0) return;
  const int64_t blocks = grid_threads() / block_threads(), parts = blocks < shape.seq_len ? 1 : blocks / shape.seq_len;
  const int64_t part = block_index() / shape.seq_len;
  if (part >= parts) return;
  for (int64_t time = block_index() % shape.seq_len; time < shape.seq_len; time += blocks) {
    const int64_t first_row = shape.first_row(time), values = static_cast<int64_t>(shape.active(time)) * shape.hidden;
    for (int direction = 0; direction < shape.directions; ++direction)
      for (int64_t i = part * block_threads() + thread_index(); i < values; i += parts * block_threads()) {
        const int unit = static_cast<int>(i % shape.hidden);
        const UnitCoord at{direction, static_cast<int>(i / shape.hidden), unit, unit};
        visit(at, time, (direction * shape.rows + first_row) * shape.hidden + i);
      }
  }
}

// The state that each row's step began with, as W_hh has met it, [D, R, H]: the output of the step before, or h0. dW_hh =
// dgates^T times it. The shape's hidden units are those of h here.
template <class T>
SEQKERNELS_KERNEL copy_previous_states_kernel(const Shape shape, const void* output, const void* h0, void* previous,
                                              const Transition transition) {
  for_units_of_rows(shape, [&](const UnitCoord& at, int64_t time, int64_t place) {
    T* const to = static_cast<T*>(previous) + place;
    const int64_t before = shape.time_before(at.direction, time), state = state_index(shape, at, shape.hidden, at.unit);
    if (!has_step(shape, transition, time, at.column) || is_reset(shape, transition, at.direction, time, at.column)) {
      *to = from_real<T>(0);
      return;
    }
    if (has_step(shape, transition, before, at.column))
      *to = static_cast<const T*>(
          output)[output_index(shape, at, shape.first_row(before) + at.column, shape.hidden, at.unit)];
    else
      *to = static_cast<const T*>(h0)[state];
    if (transition.recurrent_mask) *to = from_real<T>(to_real(*to) * recurrent_mask<T>(transition, state));
  });
}

// x [R, I], with zeros in rows that belong to no sequence: a product over all rows would carry a NaN from there to every weight.
// The shape's hidden units are its features, in one direction.
template <class T>
SEQKERNELS_KERNEL copy_rows_of_steps_kernel(const Shape shape, const void* x, void* copy, const Transition transition) {
  for_units_of_rows(shape, [&](const UnitCoord& at, int64_t time, int64_t place) {
    static_cast<T*>(copy)[place] =
        has_step(shape, transition, time, at.column) ? static_cast<const T*>(x)[place] : from_real<T>(0);
  });
}

// The operand of a stage after the first one, [D, R, H], made once more from what was saved.
template <class Cell, class T, int stage>
SEQKERNELS_KERNEL make_operands_kernel(const Shape shape, const void* gates, const void* output, const void* h0,
                                       const void* cells, const void* c0, void* operands, const Transition transition) {
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  for_units_of_rows(shape, [&](const UnitCoord& at, int64_t time, int64_t place) {
    const int64_t row = shape.first_row(time) + at.column, before = shape.time_before(at.direction, time);
    const int64_t row_before = before >= 0 && before < shape.seq_len ? shape.first_row(before) + at.column : 0;
    if (!has_step(shape, transition, time, at.column)) {
      write<T>(operands, place, R(0));
      return;
    }
    const bool is_new = is_reset(shape, transition, at.direction, time, at.column);
    const bool starts = !has_step(shape, transition, before, at.column);
    const int64_t state = state_index(shape, at, shape.hidden, at.unit);
    const int64_t first = saved_index(shape, at, row, Cell::kSaved);
    V saved[Cell::kSaved];
    SEQKERNELS_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) saved[k] = read<T>(gates, first + k * shape.padded);
    cells::State<V> prev{V(0), V(0)}, now{V(0), V(0)};
    if constexpr (Cell::kHasCellState) {
      const auto c_at = [&](int64_t row) { return static_cast<const R*>(cells)[saved_index(shape, at, row, 1)]; };
      now.c = c_at(row);
      if (transition.zoneout_c || transition.zoneout_c_rate > 0) {
        if (!is_new) prev.c = starts ? read<T>(c0, state) : c_at(row_before);
        now.c = Cell::next_c(saved, prev.c);
      }
    } else if (!is_new) {
      prev.h =
          starts ? read<T>(h0, state) : read<T>(output, output_index(shape, at, row_before, shape.hidden, at.unit));
    }
    R operand = Cell::operand(cells::Stage<stage>(), saved, prev, now).v;
    if constexpr (!StageOf<Cell, stage>::kIsProjection) operand *= recurrent_mask<T>(transition, state);
    write<T>(operands, place, operand);
  });
}

}  // namespace seqkernels::cuda
