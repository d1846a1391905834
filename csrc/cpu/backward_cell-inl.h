// The cell in the backward time loop: the gradients of its gates. Compiled once per ISA.
//
// Members of BackwardLoop, which names the types.
#pragma once
#include "backward-inl.h"

namespace seqkernels::SEQKERNELS_ISA {

template <class Cell, class S, class F>
inline auto BackwardLoop<Cell, S, F>::cell_row(int d, const Steps& steps, const Chunk& chunk, int64_t t,
                                               int64_t b) const -> CellRow {
  const Buffers& buffers = buffers_[d];
  const int64_t row = steps.first_row(t) + b, previous = steps.previous(t);
  const bool starts = b >= steps.starting(t);
  const auto cells = [&](int64_t r) { return reinterpret_cast<const T*>(p_.cells) + (d * rows_ + r) * size_.padded; };
  CellRow result{};
  result.buffers = &buffers;
  result.saved = reinterpret_cast<const S*>(p_.gates) + (d * rows_ + row) * kReserved * size_.padded;
  if (p_.grad_output.data) result.grad_output = row_of<const S>(p_.grad_output, shape_, t, b) + d * size_.outputs;
  if (p_.grad_cells.data) result.grad_cells = row_of<const S>(p_.grad_cells, shape_, t, b) + d * size_.hidden;
  if constexpr (Cell::kBackwardReadsH) {
    result.h_prev = previous_h(d, steps, t, b);
    result.h = output_row(t, b, d);
  }
  result.is_cut = b < steps.ending(t) && is_new(steps, steps.next(t), b);
  result.zoneout_h = zoneout_h_.row(d, t, b);
  result.zoneout_c = zoneout_c_.row(d, t, b);
  result.kept_h = buffers.kept_h + b * size_.outputs_padded;
  result.kept_c = buffers.kept_c + b * size_.padded;
  if constexpr (Cell::kHasCellState) {
    if (is_new(steps, t, b))
      result.c0 = buffers.zeros;
    else if (starts)
      result.c0 = state_row(p_.c0, size_.hidden, d, b);
    else
      result.c_prev = cells(steps.first_row(previous) + b);
    result.c = cells(row);
    result.dc = buffers.dc + b * size_.padded;
  }
  result.dh = buffers.dh + b * size_.outputs_padded;
  result.grad_operand = buffers.grad_operand + b * size_.padded;
  result.dgates = buffers.dgates + (row - chunk.first_row) * dgates_stride_;
  return result;
}

// The vectors of a stage's units that are this thread's.
template <class Cell, class S, class F>
template <int stage>
inline Range BackwardLoop<Cell, S, F>::own_vectors(const ThreadSlice& slice) const {
  const Range panels = slice.units(Panels<T>{size_.units(stage)}.count());
  return {panels.begin * kPanelVectors, min(panels.end * kPanelVectors, ceil_div(size_.units(stage), kLanes))};
}

// Turns dh and dc of step t into the dgates of a stage, and what flows back directly, for the units and sequences of this
// thread.
template <class Cell, class S, class F>
template <int stage>
inline void BackwardLoop<Cell, S, F>::pointwise_step(const ThreadSlice& slice, const Steps& steps, const Chunk& chunk,
                                                     int64_t t) const {
  const Range vectors = own_vectors<stage>(slice);
  const int64_t count = slice.sequences(steps.active(t));
  for (int64_t r = 0; r < count; ++r)
    pointwise_vectors<stage>(cell_row(slice.direction, steps, chunk, t, slice.sequence(r)), vectors);
}

// A stage of the cell for the vectors of units [range) of a row, kVectors of them side by side while there are.
template <class Cell, class S, class F>
template <int stage, int kVectors>
SEQKERNELS_INLINE void BackwardLoop<Cell, S, F>::pointwise_vectors(const CellRow& row, Range range) const {
  for (; range.size() >= kVectors; range.begin += kVectors) pointwise<stage, kVectors>(row, range.begin * kLanes);
  if constexpr (kVectors > 1) pointwise_vectors<stage, kVectors - 1>(row, range);
}

template <class Cell, class S, class F>
template <int stage, int kVectors>
SEQKERNELS_INLINE void BackwardLoop<Cell, S, F>::pointwise(const CellRow& row, int64_t u) const {
  using Vectors = VecN<T, kVectors>;
  // Padded rows are read and written whole, tensors up to their last unit.
  const auto read = [&](const auto* p) { return Vectors::each([&](int i) { return load(p + u + i * kLanes); }); };
  const int64_t units = size_.units(stage);
  const auto read_units = [&](const S* p) {
    return Vectors::each([&](int i) { return load(p + u + i * kLanes, units - u - i * kLanes); });
  };
  const auto write = [&](T* p, const Vectors& v) {
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) store(p + u + i * kLanes, v.part[i]);
  };
  constexpr bool kHasH = cells::has_h<Cell>(stage), kHasC = cells::has_c<Cell>(stage);
  // Of all stages, the first one here that has h, or c, and the last one.
  constexpr bool kBeginsH = stage == kStages - 1, kEndsH = Cell::kIsProjected ? kBeginsH : stage == 0;
  constexpr bool kBeginsC = kHasC && (kBeginsH || !cells::has_c<Cell>(stage + 1)), kEndsC = kHasC && stage == 0;
  Vectors saved[Cell::kSaved + 1], dgates[kDgates];
  if constexpr (!cells::is_projection<Cell>(stage) && !kNormalizes)
    for (int s = 0; s < Cell::kSaved; ++s) saved[s] = read(row.saved + s * size_.padded);
  cells::State<Vectors> prev{Vectors(0), Vectors(0)}, state{Vectors(0), Vectors(0)}, grad{Vectors(0), Vectors(0)};
  if constexpr (kHasH)
    if (!kBeginsH || !row.is_cut) grad.h = read(row.dh);
  if (kBeginsH && row.grad_output) grad.h = grad.h + read_units(row.grad_output);
  if constexpr (Cell::kBackwardReadsH) prev.h = read_units(row.h_prev), state.h = read_units(row.h);
  if constexpr (kHasC) {
    prev.c = row.c0 ? read_units(row.c0) : read(row.c_prev);
    state.c = read(row.c);
    if (!kBeginsC || !row.is_cut) grad.c = read(row.dc);
    if (kBeginsC && row.grad_cells) grad.c = grad.c + read_units(row.grad_cells);
  }
  // What zoneout lets pass by the cell, which gets the rest.
  const auto split = [&](const ZoneoutRow<T>& zoneout, T* kept, Vectors& whole) {
    for (int i = 0; i < kVectors; ++i) {
      const V before = whole.part[i];
      whole.part[i] = zoneout.mix(u + i * kLanes, units - u - i * kLanes, V(0), before);
      store(kept + u + i * kLanes, zoneout.mix(u + i * kLanes, units - u - i * kLanes, before, V(0)));
    }
  };
  if (kBeginsH && zoneout_h_.is_on()) split(row.zoneout_h, row.kept_h, grad.h);
  if (kBeginsC && zoneout_c_.is_on()) split(row.zoneout_c, row.kept_c, grad.c);
  if constexpr (kHasC && !kNormalizes)
    if (zoneout_c_.is_on()) state.c = Cell::next_c(saved, prev.c);

  if constexpr (kNormalizes) remake_saved(row, prev, read, saved);

  cells::State<Vectors> left;
  if constexpr (stage == kStages - 1)
    left = Cell::backward(cells::Stage<stage>(), saved, prev, state, grad, dgates);
  else
    left = Cell::backward(cells::Stage<stage>(), saved, prev, state, grad, read(row.grad_operand), dgates);

  if (kEndsH && zoneout_h_.is_on()) left.h = left.h + read(row.kept_h);
  if (kEndsC && zoneout_c_.is_on()) left.c = left.c + read(row.kept_c);
  if constexpr (kHasH) write(row.dh, left.h);
  if constexpr (kHasC) write(row.dc, left.c);
  constexpr int kFirst = cells::first_gate<Cell>(stage);
  for (int g = kFirst; g < (kStages == 1 ? kDgates : kFirst + Cell::kStageGates[stage]); ++g)
#pragma GCC unroll 4
    for (int i = 0; i < kVectors; ++i) {
      const int64_t unit = u + i * kLanes;
      store(row.dgates + g * block_ + unit, dgates[g].part[i], units - unit);
    }
}

}  // namespace seqkernels::SEQKERNELS_ISA
