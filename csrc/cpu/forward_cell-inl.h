// The cell in the forward time loop: its gates from products, its results to the tensors. Compiled once per ISA.
//
// Members of ForwardLoop, which names the types.
#pragma once
#include "forward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

// What the cells of a tile will read and write, which its product leaves the time to fetch.
template <class Cell, class S, class F>
template <int stage>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::prefetch(const Step& step, const Chunk& chunk, const ThreadSlice& slice,
                                                         int64_t panel, Range rows) const {
  const Buffers& buffers = buffers_[step.direction];
  constexpr int kLine = 64 / sizeof(T);
  const int64_t unit = panel * Product<stage>::kUnitVectors * kLanes;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const int64_t b = slice.sequence(r);
    if constexpr (stage < kInputStages) {
      const T* const row = input_gates<stage>(step.direction, chunk, panel, step.chunk_row + b);
#pragma GCC unroll 16
      for (int i = 0; i < Product<stage>::kPanelWidth; i += kLine) __builtin_prefetch(row + i);
    }
    if constexpr (cells::has_c<Cell>(stage)) {
      __builtin_prefetch(buffers.c + b * size_.padded + unit);
      if (step.cell_states) __builtin_prefetch(cell_states_row(step, b) + unit, 1);
    }
    if constexpr (stage == kStages - 1) __builtin_prefetch(output_row(step, b) + unit, 1);
  }
}

// A stage of the cell for the units of one panel of the rows [range) of a tile, kRows of them side by side while there are.
template <class Cell, class S, class F>
template <int stage, int kRows, class Row>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::pointwise_rows(const Step& step, int64_t panel, Range range,
                                                               const Row& cell_row) const {
  for (; range.size() >= kRows; range.begin += kRows) {
    CellRow rows[kRows];
    for (int i = 0; i < kRows; ++i) rows[i] = cell_row(range.begin + i);
    pointwise<stage>(step, panel, rows);
  }
  if constexpr (kRows > 1) pointwise_rows<stage, kRows - 1>(step, panel, range, cell_row);
}

template <class Cell, class S, class F>
template <int stage, int kRows>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::pointwise(const Step& step, int64_t panel,
                                                          const CellRow (&rows)[kRows]) const {
  using Vectors = VecN<T, kRows>;
  constexpr bool kHasC = cells::has_c<Cell>(stage);
  constexpr int kFirst = cells::first_gate<Cell>(stage), kStageGates = Cell::kStageGates[stage];
  constexpr int kUnitVectors = Product<stage>::kUnitVectors;
  const Buffers& buffers = buffers_[step.direction];
  const int unit_vectors = Product<stage>::panel_unit_vectors(panel, size_.units(stage));
  for (int v = 0; v < unit_vectors; ++v) {
    const int64_t u = (panel * kUnitVectors + v) * kLanes;
    const auto c = [&](int i) { return buffers.c + rows[i].b * size_.padded + u; };
    const auto carried = [&](int i, int s) {
      return buffers.carried + (rows[i].b * Cell::kCarried + s) * size_.padded + u;
    };
    Vectors input_gates[kGates], hidden_gates[kGates], saved[Cell::kSaved + 1];
#pragma GCC unroll 4
    for (int g = 0; g < kStageGates; ++g) {
      const int column = (v * kStageGates + g) * kLanes;
      if constexpr (Cell::kNorm == cells::Norm::kSum)
        input_gates[kFirst + g] = Vectors::each(
            [&](int) { return load(buffers.w_ih[0].packed_bias + panel * Product<stage>::kPanelWidth + column); });
      else if constexpr (stage < kInputStages)
        input_gates[kFirst + g] = Vectors::each([&](int i) { return load(rows[i].input + column); });
      if constexpr (kNormalizes)
        hidden_gates[kFirst + g] = normalized_gate<stage>(step, panel, rows, g, column, u);
      else
        hidden_gates[kFirst + g] = Vectors::each([&](int i) { return load(rows[i].hidden + column); });
    }
    cells::State<Vectors> prev{Vectors(0), Vectors(0)};
    if constexpr (cells::has_h<Cell>(stage))
      prev.h = Vectors::each([&](int i) { return load(step.h_prev + rows[i].b * h_stride_ + u); });
    if constexpr (kHasC) prev.c = Vectors::each([&](int i) { return load(c(i)); });
    if constexpr (stage > 0)
      for (int s = 0; s < Cell::kCarried; ++s) saved[s] = Vectors::each([&](int i) { return load(carried(i, s)); });

    cells::State<Vectors> made = Cell::forward(cells::Stage<stage>(), input_gates, hidden_gates, prev, saved);

    constexpr bool kMakesC = kHasC && (stage == kStages - 1 || !cells::has_c<Cell>(stage + 1));
    if constexpr (stage == kStages - 1)
      if (zoneout_h_.is_on()) zone(step, zoneout_h_, size_.outputs, u, rows, prev.h, made.h);
    if constexpr (kHasC)
      if (zoneout_c_.is_on()) {
        const auto before = [&](int i) { return buffers.c_before + rows[i].b * size_.padded + u; };
        if constexpr (!kMakesC)
          for (int i = 0; i < kRows; ++i) store(before(i), prev.c.part[i]);
        else if constexpr (Cell::kNormalizesCell)
          zone(step, zoneout_c_, size_.hidden, u, rows, Vectors::each([&](int i) { return load(before(i)); }), made.c);
        else
          zone(step, zoneout_c_, size_.hidden, u, rows, prev.c, made.c);
      }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const int64_t b = rows[i].b;
      constexpr int kSavedFrom = cells::first_saved<Cell>(stage), kSavedTo = kSavedFrom + Cell::kStageSaved[stage];
      if constexpr (Cell::kSaved > 0 && !kNormalizes)
        if (step.gates)
          for (int s = kSavedFrom; s < kSavedTo; ++s)
            save(step.gates + (b * kReserved + s) * size_.padded, u, saved[s].part[i]);
      const V h = round_to<S>(made.h.part[i]);
      if constexpr (stage < kStages - 1) {
        for (int s = kSavedFrom; s < min(kSavedTo, Cell::kCarried); ++s) store(carried(i, s), saved[s].part[i]);
        if constexpr (stage < kOperands) {
          // What is made of h for a product with W_hh is masked as h is; what is made for a projection is not.
          const bool is_masked = p_.transition.recurrent_mask && !cells::is_projection<Cell>(stage + 1);
          store_operand(buffers.operands[stage] + b * operand_stride_, u, size_.hidden,
                        is_masked ? masked(step.direction, b, u, h) : h);
        }
      } else {
        finish_h(step, rows[i], u, h);
      }
      if constexpr (kHasC) {
        store(c(i), kMakesC && rows[i].restarts ? V(0) : made.c.part[i]);
        if constexpr (kMakesC) finish_c(step, rows[i], u, made.c.part[i]);
      }
    }
  }
}

// Zoneout: some units keep the value that they had before the step.
template <class Cell, class S, class F>
template <class Vectors>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::zone(const Step& step, const ZoneoutOf<T>& zoneout, int64_t units,
                                                     int64_t u, const CellRow* rows, const Vectors& before,
                                                     Vectors& made) const {
  made = Vectors::each([&](int i) {
    return zoneout.row(step.direction, step.time, rows[i].b).mix(u, units - u, before.part[i], made.part[i]);
  });
}

// The padding stays zero where a pack reaches into it: there, infinity times the padding of W would be NaN.
template <class Cell, class S, class F>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::store_operand(E* row, int64_t u, int64_t units, V value) {
  store(row + u, value, F::kPack == 1 ? kLanes : units - u);
}

// The new state of sequence b.
template <class Cell, class S, class F>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::finish_h(const Step& step, const CellRow& row, int64_t u, V h) const {
  const int64_t valid = size_.outputs - u, b = row.b;
  const V next = row.restarts ? V(0) : h;
  store_operand(step.h + b * h_stride_, u, size_.outputs, next);
  if (p_.transition.recurrent_mask)
    store_operand(step.masked_h + b * h_stride_, u, size_.outputs, masked(step.direction, b, u, next));
  store(row.output + u, h, valid);
  if (b >= step.ending) store(state_row(p_.h_n, size_.outputs, step.direction, b) + u, h, valid);
}
template <class Cell, class S, class F>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::finish_c(const Step& step, const CellRow& row, int64_t u, V c) const {
  const int64_t b = row.b;
  if (step.cells) save(step.cells + b * size_.padded, u, c);
  if (row.cell_states) store(row.cell_states + u, c, size_.hidden - u);
  if (b >= step.ending) store(state_row(p_.c_n, size_.hidden, step.direction, b) + u, c, size_.hidden - u);
}

// Stores the units [u, u + kLanes) of a padded row; the last ones with the padding, which is zero.
template <class Cell, class S, class F>
template <class P>
SEQKERNELS_INLINE void ForwardLoop<Cell, S, F>::save(P* row, int64_t u, V value) const {
  store(row + u, value);
  if constexpr (kLanes < kUnitPadding)
    if (u + kLanes >= size_.hidden)
      for (int64_t rest = u + kLanes; rest < size_.padded; rest += kLanes) store(row + rest, V(0));
}

}  // namespace seqkernels::SEQKERNELS_ISA
