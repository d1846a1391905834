// What happens to states between steps, beside the cell: resets, lengths, recurrent dropout, zoneout. The stepwise kernels read
// it; those of persistent plans are compiled without.
//
// A reset between two steps lets nothing pass: the later one starts from zeros. It is said of the later row in time, so in
// direction 1 it lies between a row and the one that comes before it there.
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

// Whether a sequence has a step at this time.
SEQKERNELS_DEVICE bool has_step(const Shape& shape, const Transition& transition, int64_t time, int column) {
  if (time < 0 || time >= shape.seq_len || column >= shape.active(time)) return false;
  return !transition.lengths || time < transition.lengths[column];
}

// Whether a step that a sequence has starts from zeros.
SEQKERNELS_DEVICE bool is_reset(const Shape& shape, const Transition& transition, int direction, int64_t time,
                                int column) {
  const int64_t later = direction == 0 ? time : time + 1;
  if (!transition.resets || !has_step(shape, transition, later, column)) return false;
  return transition.resets[shape.first_row(later) + column] != 0;
}

// The factor of a unit of h where it meets W_hh.
template <class T>
SEQKERNELS_DEVICE Real<T> recurrent_mask(const Transition& transition, int64_t h_index) {
  return transition.recurrent_mask ? read<T>(transition.recurrent_mask, h_index) : Real<T>(1);
}

// Index of a unit of c in [R, D, H].
template <class Problem>
SEQKERNELS_DEVICE int64_t c_row_index(const Problem& p, const UnitCoord& at, int64_t row) {
  return output_index(p.shape, at, row, p.shape.hidden, at.unit);
}

// How much of its value before a step a unit keeps: all or nothing by flags, or a part.
template <class R>
struct Zoneout {
  R kept;

  SEQKERNELS_DEVICE R mix(R before, R made) const {
    if (kept == R(0)) return made;
    return kept == R(1) ? before : kept * before + (R(1) - kept) * made;
  }
};
template <class R>
SEQKERNELS_DEVICE Zoneout<R> zoneout(const uint8_t* flags, double rate, int64_t index) {
  return {flags ? R(flags[index] != 0) : static_cast<R>(rate)};
}

// Of a unit of one sequence at a step that it has.
template <class R>
struct Crossing {
  bool is_reset;  // the step starts from zeros
  bool is_cut;    // the step after it, as forward goes, starts from zeros
  R mask;         // of its unit of h where it meets W_hh
  Zoneout<R> zoneout_h, zoneout_c;
};

// The time of the step before another one, as forward goes, and after it.
SEQKERNELS_DEVICE int64_t time_before(int direction, int64_t time) { return direction == 0 ? time - 1 : time + 1; }
SEQKERNELS_DEVICE int64_t time_after(int direction, int64_t time) { return direction == 0 ? time + 1 : time - 1; }

template <class Units, class T, class Problem>
SEQKERNELS_DEVICE Real<T> mask_at(const Problem& p, const UnitCoord& at) {
  return Units::has_h(p, at) ? recurrent_mask<T>(p.transition, Units::h_index(p, at)) : Real<T>(1);
}

// `Units`: those of the cell (pointwise.cuh).
template <class Units, class T, class Problem>
SEQKERNELS_DEVICE Crossing<Real<T>> crossing_at(const Problem& p, const UnitCoord& at, int64_t time) {
  using R = Real<T>;
  const Transition& transition = p.transition;
  const int64_t row = p.shape.first_row(time) + at.column, next = time_after(at.direction, time);
  Crossing<R> crossing{};
  crossing.is_reset = is_reset(p.shape, transition, at.direction, time, at.column);
  crossing.is_cut =
      has_step(p.shape, transition, next, at.column) && is_reset(p.shape, transition, at.direction, next, at.column);
  crossing.mask = mask_at<Units, T>(p, at);
  if (Units::has_h(p, at))
    crossing.zoneout_h = zoneout<R>(transition.zoneout_h, transition.zoneout_h_rate, Units::output_index(p, at, row));
  if (Units::has_c(p, at))
    crossing.zoneout_c = zoneout<R>(transition.zoneout_c, transition.zoneout_c_rate, c_row_index(p, at, row));
  return crossing;
}

// Whether what a stage makes meets W_hh: h, and what is made of it for a later stage, but not what is projected.
template <class Cell, int stage>
constexpr bool kMeetsHiddenWeight = !cells::is_projection<Cell>((stage + 1) % Cell::kStages);

// Of all stages, the first one that backward runs with c.
template <class Cell, int stage>
constexpr bool kBeginsWithC =
    cells::has_c<Cell>(stage) && (stage == Cell::kStages - 1 || !cells::has_c<Cell>(stage + 1));

// A number as it is published.
template <class T>
SEQKERNELS_DEVICE Real<T> rounded(Real<T> x) {
  return to_real(from_real<T>(x));
}

// A stage of a step of the forward pass, and what happens around it.
template <class Pass, int stage, class Product, class Published>
SEQKERNELS_DEVICE auto forward_step(const typename Pass::Problem& p, const UnitCoord& at, int64_t time,
                                    typename Pass::Inputs& inputs, const typename Pass::Biases& biases,
                                    Product& product, typename Pass::State& state, Published& published) {
  using Cell = typename Pass::Cell;
  using T = typename Pass::Element;
  const auto crossing = crossing_at<typename Pass::Units, T>(p, at, time);
  if (stage == 0 && crossing.is_reset) {
    for (auto& number : product) number = 0;
    state.h = 0, state.c = 0;
  }
  const auto h = state.h, c = state.c;
  const auto results = Pass::template step<stage>(biases, inputs, product, state, published);
  if constexpr (stage == Cell::kStages - 1) published[0] = state.h = rounded<T>(crossing.zoneout_h.mix(h, state.h));
  if constexpr (kMeetsHiddenWeight<Cell, stage>) published[0] = rounded<T>(published[0] * crossing.mask);
  if constexpr (kBeginsWithC<Cell, stage>) {
    state.c = crossing.zoneout_c.mix(c, state.c);
    if (p.cell_states) write<T>(p.cell_states, c_row_index(p, at, p.shape.first_row(time) + at.column), state.c);
  }
  return results;
}

// What backward reads of the state before a step, where that is another one than the row before has.
template <class Pass>
SEQKERNELS_DEVICE void correct_previous(const typename Pass::Problem& p, const UnitCoord& at, int64_t time,
                                        const Crossing<typename Pass::R>& crossing, typename Pass::Inputs& inputs) {
  using Units = typename Pass::Units;
  using T = typename Pass::Element;
  const bool starts =
      p.transition.lengths && !has_step(p.shape, p.transition, time_before(at.direction, time), at.column);
  if (crossing.is_reset) {
    inputs.prev.h = 0, inputs.prev.c = 0;
  } else if (starts) {
    if (Units::has_h(p, at)) inputs.prev.h = read<T>(p.h0, Units::h_index(p, at));
    if (p.c0 && Units::has_c(p, at)) inputs.prev.c = read<T>(p.c0, Units::c_index(p, at));
  }
}

// The gradient that arrives at a state, and the part of it that zoneout lets pass by the cell, which is to get the rest.
template <class R>
SEQKERNELS_DEVICE R pass_by(const Zoneout<R>& zoneout, R& grad) {
  const R kept = zoneout.kept * grad;
  grad -= kept;
  return kept;
}

// A stage of a step of the backward pass, and what happens around it. `state.carried`: what passes by the cell, of h and of c.
template <class Pass, int stage, class Published>
SEQKERNELS_DEVICE auto backward_step(const typename Pass::Problem& p, const UnitCoord& at, int64_t time,
                                     typename Pass::Inputs& inputs, const typename Pass::Biases& biases,
                                     typename Pass::R (&product)[1], typename Pass::State& state,
                                     typename Pass::R (&kept)[2], Published& published) {
  using Cell = typename Pass::Cell;
  using T = typename Pass::Element;
  constexpr bool kBeginsWithH = stage == Cell::kStages - 1;
  constexpr bool kEndsWithH = Cell::kIsProjected ? kBeginsWithH : stage == 0;
  const auto crossing = crossing_at<typename Pass::Units, T>(p, at, time);
  correct_previous<Pass>(p, at, time, crossing, inputs);
  if constexpr (kMeetsHiddenWeight<Cell, stage>) product[0] *= crossing.mask;
  if constexpr (kBeginsWithH) {
    auto grad = crossing.is_cut ? 0 : state.h + product[0];
    grad += inputs.grad_output;
    kept[0] = pass_by(crossing.zoneout_h, grad);
    state.h = grad, product[0] = 0, inputs.grad_output = 0;
  }
  if constexpr (kBeginsWithC<Cell, stage>) {
    if (crossing.is_cut) state.c = 0;
    if (p.grad_cells) state.c += read<T>(p.grad_cells, c_row_index(p, at, p.shape.first_row(time) + at.column));
    kept[1] = pass_by(crossing.zoneout_c, state.c);
    if (p.transition.zoneout_c || p.transition.zoneout_c_rate > 0) {
      typename Pass::V saved[Pass::kSaved];
      for (int k = 0; k < Pass::kSaved; ++k) saved[k] = inputs.saved[k];
      inputs.now.c = Cell::next_c(saved, inputs.prev.c);
    }
  }
  const auto results = Pass::template step<stage>(biases, inputs, product, state, published);
  if constexpr (kEndsWithH) state.h += kept[0];
  if constexpr (cells::has_c<Cell>(stage) && stage == 0) state.c += kept[1];
  return results;
}

}  // namespace seqkernels::cuda
