// What happens to states between steps, beside the cell: resets, lengths, recurrent dropout, zoneout. A pass with it is a pass
// like others (pointwise.cuh): stepwise kernels always run one, persistent kernels are compiled with it and without.
//
// A reset between two steps lets nothing pass: the later one starts from zeros. It is said of the later row in time, so in
// reverse it lies between a row and the one that comes before it there. What is asked of memory comes with the inputs of
// a step, early, so that nobody who waits for a word waits for that.
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
  const int64_t later = shape.is_reverse(direction) ? time + 1 : time;
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

// How many steps a sequence has, as far as x reaches; fewer than 2^31.
SEQKERNELS_DEVICE int length_of(const Shape& shape, const Transition& transition, int column) {
  const int64_t most = shape.seq_len;
  if (!transition.lengths || column >= shape.batch) return static_cast<int>(most);
  const int64_t length = transition.lengths[column];
  return static_cast<int>(length < 0 ? 0 : length < most ? length : most);
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
SEQKERNELS_DEVICE Zoneout<R> zoneout(const uint8_t* flags, double rate, uint8_t flag) {
  return {flags ? R(flag != 0) : static_cast<R>(rate)};
}
SEQKERNELS_DEVICE uint8_t flag_at(const uint8_t* flags, int64_t index) { return flags ? flags[index] : 0; }

// What happens to a unit of one sequence around a step.
template <class R>
struct Crossing {
  bool has_step;  // the sequence has this step at all
  bool is_reset;  // it starts from zeros
  Zoneout<R> zoneout_h, zoneout_c;
};

// `Units`: those of the cell (pointwise.cuh). At a time for which the sequence has a row.
template <class Units, class R, class Problem>
SEQKERNELS_DEVICE Crossing<R> crossing_at(const Problem& p, const UnitCoord& at, int64_t time) {
  const Transition& transition = p.transition;
  const int64_t row = p.shape.first_row(time) + at.column;
  Crossing<R> crossing{};
  crossing.has_step = !transition.lengths || time < transition.lengths[at.column];
  crossing.is_reset = is_reset(p.shape, transition, at.direction, time, at.column);
  if (Units::has_h(p, at))
    crossing.zoneout_h = zoneout<R>(transition.zoneout_h, transition.zoneout_h_rate,
                                    flag_at(transition.zoneout_h, Units::output_index(p, at, row)));
  if (Units::has_c(p, at))
    crossing.zoneout_c = zoneout<R>(transition.zoneout_c, transition.zoneout_c_rate,
                                    flag_at(transition.zoneout_c, c_row_index(p, at, row)));
  return crossing;
}

// The factor of a unit of one sequence where it meets W_hh.
template <class Units, class T, class Problem>
SEQKERNELS_DEVICE Real<T> mask_at(const Problem& p, const UnitCoord& at) {
  return Units::has_h(p, at) ? recurrent_mask<T>(p.transition, Units::h_index(p, at)) : Real<T>(1);
}

// The gradient that arrives at a state, and the part of it that zoneout lets pass by the cell, which is to get the rest.
template <class R>
SEQKERNELS_DEVICE R pass_by(const Zoneout<R>& zoneout, R& grad) {
  const R whole = grad;
  if (zoneout.kept == R(0)) return R(0);  // an infinite gradient times zero would be none
  if (zoneout.kept == R(1)) return grad = 0, whole;
  const R kept = zoneout.kept * whole;
  grad -= kept;
  return kept;
}

// A number as it is published.
template <class T>
SEQKERNELS_DEVICE Real<T> rounded(Real<T> x) {
  return to_real(from_real<T>(x));
}

// Whether what a stage makes meets W_hh: h, and what is made of it for a later stage, but not what is projected.
template <class Cell, int stage>
constexpr bool kMeetsHiddenWeight = !cells::is_projection<Cell>((stage + 1) % Cell::kStages);

// Of all stages, the first one that backward runs with c.
template <class Cell, int stage>
constexpr bool kBeginsWithC =
    cells::has_c<Cell>(stage) && (stage == Cell::kStages - 1 || !cells::has_c<Cell>(stage + 1));

// The state of a pass, and what else a unit has from one iteration to the next: the factor where it meets W_hh; of backward
// with several stages, what passes by the cell, of h and of c.
template <class PassState, class R, bool keeps>
struct StateBetween : PassState {
  R mask;
};
template <class PassState, class R>
struct StateBetween<PassState, R, true> : PassState {
  R mask, kept[2];
};

template <class Pass>
struct WithTransition : Pass {
  using typename Pass::Biases, typename Pass::Cell, typename Pass::Element, typename Pass::Problem, typename Pass::R,
      typename Pass::Units;
  using T = Element;
  using Pass::kIsBackward, Pass::kStages;
  static constexpr bool kHasTransition = true, kKeeps = kIsBackward && kStages > 1;
  using State = StateBetween<typename Pass::State, R, kKeeps>;

  struct Inputs : Pass::Inputs {
    Crossing<R> crossing;
    R grad_cell_state;  // of backward
  };
  struct Loaded : Pass::Loaded {
    bool has_step;
    uint8_t reset, zoneout_h, zoneout_c;  // flags
    T grad_cell_state;
  };
  static SEQKERNELS_DEVICE Inputs inputs_of(const Problem& p, const Loaded& loaded) {
    const Transition& transition = p.transition;
    Inputs inputs{Pass::inputs_of(p, loaded),
                  {loaded.has_step, loaded.reset != 0,
                   zoneout<R>(transition.zoneout_h, transition.zoneout_h_rate, loaded.zoneout_h),
                   zoneout<R>(transition.zoneout_c, transition.zoneout_c_rate, loaded.zoneout_c)},
                  to_real(loaded.grad_cell_state)};
    if constexpr (kIsBackward)
      if (inputs.crossing.is_reset) inputs.prev.h = 0, inputs.prev.c = 0;
    return inputs;
  }
  struct Results : Pass::Results {
    bool has_step;
  };

  static SEQKERNELS_DEVICE State initial(const Problem& p, const UnitCoord& at) {
    State state{Pass::initial(p, at)};
    state.mask = mask_at<Units, T>(p, at);
    return state;
  }
  // A state that the iteration before has left in memory.
  static SEQKERNELS_DEVICE State resumed(const Problem& p, const UnitCoord& at, R h, R c) {
    State state{};
    state.h = h, state.c = c, state.mask = mask_at<Units, T>(p, at);
    return state;
  }

  class Reader : public Pass::Reader {
   public:
    SEQKERNELS_DEVICE Reader(const Problem& p, const UnitCoord& at, int64_t time)
        : Pass::Reader(p, at, time),
          row_(p.shape.first_row(time) + at.column),
          column_(at.column),
          length_(length_of(p.shape, p.transition, at.column)) {}
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      Pass::Reader::move(p, rows);
      row_ += rows;
    }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) {
      Pass::Reader::move_across(p, sequences);
      row_ += sequences, column_ += sequences;
      length_ = length_of(p.shape, p.transition, column_);
    }

    template <int stage>
    SEQKERNELS_DEVICE Loaded load(const Problem& p, const Walk& walk, const UnitCoord& at, int unit) const {
      const Transition& transition = p.transition;
      const bool is_reverse = p.shape.is_reverse(at.direction);
      // The later row in time of those between which a reset lies, this one or, in reverse, that of the step before.
      const int64_t time = walk.time(), later = is_reverse ? time + 1 : time;
      const bool may_reset = transition.resets && later < length_ && (!is_reverse || at.column < p.shape.active(later));
      Loaded loaded{Pass::Reader::template load<stage>(p, walk, at, unit, is_reverse && later >= length_)};
      loaded.has_step = time < length_;
      if (may_reset) loaded.reset = transition.resets[row_ + (is_reverse ? walk.active() : 0)];
      if (Units::has_h(p, at)) loaded.zoneout_h = flag_at(transition.zoneout_h, Units::output_index(p, at, row_));
      if (Units::has_c(p, at)) loaded.zoneout_c = flag_at(transition.zoneout_c, c_row_index(p, at, row_));
      if constexpr (kIsBackward && kBeginsWithC<Cell, stage>)
        if (p.grad_cells) loaded.grad_cell_state = static_cast<const T*>(p.grad_cells)[c_row_index(p, at, row_)];
      return loaded;
    }

   private:
    int64_t row_;  // of the sequence's step
    int column_, length_;
  };

  class Writer : public Pass::Writer {
   public:
    SEQKERNELS_DEVICE Writer(const Problem& p, const UnitCoord& at, int64_t time) : Pass::Writer(p, at, time) {
      if constexpr (kWritesC)
        cell_states_ = static_cast<T*>(p.cell_states) + c_row_index(p, at, p.shape.first_row(time) + at.column);
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      Pass::Writer::move(p, rows);
      if constexpr (kWritesC) move_rows(cell_states_, rows, p.row_bytes.cell_states);
    }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) { move(p, sequences); }
    template <int stage>
    SEQKERNELS_DEVICE void write(const Problem& p, int unit, const State& state, const Results& results) const {
      if (!results.has_step) return;
      Pass::Writer::template write<stage>(p, unit, state, results);
      if constexpr (kWritesC && kBeginsWithC<Cell, stage>)
        if (p.cell_states) cell_states_[unit] = from_real<T>(state.c);
    }

   private:
    static constexpr bool kWritesC = !kIsBackward && Cell::kHasCellState;
    T* cell_states_ = nullptr;
  };

  template <int stage, int kProducts, int kPublished>
  static SEQKERNELS_DEVICE Results step(const Biases& biases, Inputs& inputs, R (&product)[kProducts], State& state,
                                        R (&published)[kPublished]) {
    Results results{};
    results.has_step = inputs.crossing.has_step;
    if (!results.has_step)
      idle<stage>(product, state, published);
    else if constexpr (kIsBackward)
      static_cast<typename Pass::Results&>(results) = step_back<stage>(biases, inputs, product, state, published);
    else
      static_cast<typename Pass::Results&>(results) = step_forward<stage>(biases, inputs, product, state, published);
    return results;
  }

  template <int stage, int kProducts, int kPublished>
  static SEQKERNELS_DEVICE void idle(R (&product)[kProducts], State& state, R (&published)[kPublished]) {
    constexpr bool kMasked = kMeetsHiddenWeight<Cell, stage>;
    if constexpr (kMasked && kIsBackward) product[0] *= state.mask;
    Pass::template idle<stage>(product, state, published);
    if constexpr (kMasked && !kIsBackward) published[0] = rounded<T>(published[0] * state.mask);
  }

 private:
  template <int stage, int kProducts>
  static SEQKERNELS_DEVICE typename Pass::Results step_forward(const Biases& biases, const Inputs& inputs,
                                                               R (&product)[kProducts], State& state,
                                                               R (&published)[1]) {
    const Crossing<R>& crossing = inputs.crossing;
    if (crossing.is_reset) {
      if constexpr (stage == 0) {
        SEQKERNELS_UNROLL
        for (R& number : product) number = 0;
        state.c = 0;
      }
      if constexpr (stage == 0 || Cell::kIsProjected)
        state.h = 0;  // a projected h is of another unit, which has no stage 0
    }
    const R h = state.h, c = state.c;
    const auto results = Pass::template step<stage>(biases, inputs, product, state, published);
    if constexpr (stage == kStages - 1) published[0] = state.h = rounded<T>(crossing.zoneout_h.mix(h, state.h));
    if constexpr (kMeetsHiddenWeight<Cell, stage>) published[0] = rounded<T>(published[0] * state.mask);
    if constexpr (kBeginsWithC<Cell, stage>) state.c = crossing.zoneout_c.mix(c, state.c);
    return results;
  }

  template <int stage, int kPublished>
  static SEQKERNELS_DEVICE typename Pass::Results step_back(const Biases& biases, Inputs& inputs, R (&product)[1],
                                                            State& state, R (&published)[kPublished]) {
    constexpr bool kBeginsWithH = stage == kStages - 1;
    constexpr bool kEndsWithH = Cell::kIsProjected ? kBeginsWithH : stage == 0;
    const Crossing<R>& crossing = inputs.crossing;
    R kept[2] = {};  // of h and c
    if constexpr (kKeeps) kept[0] = state.kept[0], kept[1] = state.kept[1];
    if constexpr (kMeetsHiddenWeight<Cell, stage>) product[0] *= state.mask;
    if constexpr (kBeginsWithH) {
      state.h = state.h + product[0] + inputs.grad_output;
      kept[0] = pass_by(crossing.zoneout_h, state.h);
      product[0] = 0, inputs.grad_output = 0;
    }
    if constexpr (kBeginsWithC<Cell, stage>) {
      state.c += inputs.grad_cell_state;
      kept[1] = pass_by(crossing.zoneout_c, state.c);
      if (crossing.zoneout_c.kept != 0) {  // what was saved is no more what the cell has made
        typename Pass::V saved[Pass::kSaved];
        SEQKERNELS_UNROLL
        for (int k = 0; k < Pass::kSaved; ++k) saved[k] = inputs.saved[k];
        inputs.now.c = Cell::next_c(saved, inputs.prev.c);
      }
    }
    const auto results = Pass::template step<stage>(biases, inputs, product, state, published);
    // To the step before, nothing passes by a reset, by way of the product either.
    if constexpr (kEndsWithH) state.h = crossing.is_reset ? 0 : state.h + kept[0];
    if constexpr (StageOf<Cell, stage>::kHasC && stage == 0) state.c = crossing.is_reset ? 0 : state.c + kept[1];
    if constexpr (stage == 0) {
      SEQKERNELS_UNROLL
      for (R& number : published) number = crossing.is_reset ? 0 : number;
    }
    if constexpr (kKeeps) state.kept[0] = kept[0], state.kept[1] = kept[1];
    return results;
  }
};

}  // namespace seqkernels::cuda
