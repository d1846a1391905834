// The pointwise part of a step for one hidden unit of one sequence: what it reads, the cell, what it writes. Both the
// persistent and the stepwise kernels run it; they differ in where the product with W_hh comes from.
//
// A pass (Forward, Backward) is a template on the cell and the element type with
//   kIsBackward whether it is the backward pass
//   kHasTransition  whether it heeds what happens between steps (transition.cuh)
//   kFinalStage the stage whose product is the last of the pass
//   Iteration   of the iteration with the product of a stage:
//                 kTiles    row blocks of the matrix that it multiplies with: a product has one value per unit for each
//                 kReads    values per unit that the product reads, published in the iteration before
//                 kFirstTile, kFirstBlock  where these begin among the row blocks and in a row of the matrix
//                 kRowBlocks  blocks that a row of the matrix has: of W_hh [G H, P] one, of that transposed, G
//                 kFollows  the stage whose pointwise part follows upon the product: it is of the units of that
//                 kPublisher  the stage that has published what the product reads, for each of its units
//                 kNext     the stage whose product comes next
//   Reader      where a step's inputs are for one unit, and `load`, which brings them (early: they arrive while the product
//               is under way), as they are in memory (Loaded); `inputs_of` makes numbers of them
//   step        a stage of a step: product in, state updated, `published` and results out
//   Writer      where a step's results go for one unit, and `write` (late, so that nobody waits for memory who waits for what
//               is published)
//   idle        what stands in for `step` where there is none: a sequence that has ended or not begun
//   finish      writes the final state
// Readers and writers hold pointers that move along from step to step (`move`; Walk knows how far): nothing is multiplied out
// again in the loop. `move_across` takes them to other sequences, which have other first states and lengths; `hold` has them keep
// in a register what would else be asked in each step.
//
// Steps are numbered as the pass does them. Of n steps, iteration i of 0..n does number i - 1 going forward (iteration 0
// publishes the initial state), and number i going back (iteration n has the last product). Where a step has several stages
// (cells/cell.h), an iteration is one stage of a step, and there are as many times more. An iteration is known by the stage of
// its product, with rows of W_hh of that stage: going forward, the pointwise part of the same stage follows; going back, that
// of the stage before it, or, after the first stage's, of the last stage and of the next step. Either way, a step ends where
// the first stage's product comes next.
//
// Type parameters: T is the element type, R = Real<T> (numbers.cuh) what arithmetic is done in, V = Value<R, ..> what the
// cells compute with.
#pragma once
#include "../cells/cell.h"
#include "numbers.cuh"
#include "problem.h"

namespace seqkernels::cuda {

// One hidden unit of one sequence.
struct UnitCoord {
  int direction, column, unit;  // column: the sequence
  int output;                   // the unit of h that goes with it where h is a projection, which has others
};

template <class T>
SEQKERNELS_DEVICE auto read(const void* base, int64_t index) {
  return to_real(static_cast<const T*>(base)[index]);
}

template <class T>
SEQKERNELS_DEVICE void write(void* base, int64_t index, Real<T> value) {
  static_cast<T*>(base)[index] = from_real<T>(value);
}

// Moves a pointer by so many rows of so many bytes: one multiply-add.
template <class T>
SEQKERNELS_DEVICE void move_rows(T*& pointer, int rows, int bytes) {
  // Not by way of integers, or it would forget that it is of global memory.
  pointer = (T*)((const char*)pointer + wide_product(rows, bytes));
}

// Index of a unit in [D, B, units] and in [R, D, units].
SEQKERNELS_DEVICE int64_t state_index(const Shape& shape, const UnitCoord& at, int units, int unit) {
  return (static_cast<int64_t>(at.direction) * shape.batch + at.column) * units + unit;
}
SEQKERNELS_DEVICE int64_t output_index(const Shape& shape, const UnitCoord& at, int64_t row, int units, int unit) {
  return (row * shape.directions + at.direction) * units + unit;
}

// Index of a unit's first of `blocks` saved values.
SEQKERNELS_DEVICE int64_t saved_index(const Shape& shape, const UnitCoord& at, int64_t row, int blocks) {
  return (at.direction * shape.rows + row) * blocks * shape.padded + at.unit;
}

// One direction's steps in the order of a pass: the one at hand, and the next.
class Walk {
 public:
  // Begins at `time` and goes up (sign 1) or down (sign -1), `steps` steps in all.
  SEQKERNELS_DEVICE Walk(const Shape& shape, int64_t time, int sign, int64_t steps)
      : offsets_(shape.offsets),
        is_packed_(launder(shape.offsets != nullptr)),
        time_(static_cast<int>(time)),
        sign_(sign),
        left_(static_cast<int>(steps) - 1),
        active_(steps > 0 ? shape.active(time) : 0),
        next_(left_ > 0 ? active_ : 0) {
    if (is_packed_) look_ahead();
  }

  // Sequences, the first ones of the batch, that have this step; that have the next one: none behind the last.
  SEQKERNELS_DEVICE int active() const { return active_; }
  SEQKERNELS_DEVICE int next() const { return next_; }
  SEQKERNELS_DEVICE int64_t time() const { return time_; }
  // Rows from that of a sequence's step at hand to that of its next.
  SEQKERNELS_DEVICE int rows() const { return sign_ > 0 ? active_ : -next_; }

  SEQKERNELS_DEVICE void advance() {
    active_ = next_, time_ += sign_, --left_;
    next_ = left_ > 0 ? active_ : 0;
    if (is_packed_) look_ahead();
  }

 private:
  SEQKERNELS_DEVICE void look_ahead() {
    const int64_t* const next = offsets_ + (time_ + sign_);
    if (left_ > 0) next_ = static_cast<int>(next[1] - next[0]);
  }

  const int64_t* offsets_;
  int is_packed_;
  int time_, sign_, left_, active_, next_;
};

// A stage of a cell.
template <class Cell, int stage>
struct StageOf {
  static constexpr int kFirstGate = cells::first_gate<Cell>(stage), kGates = Cell::kStageGates[stage];
  static constexpr int kGatesEnd = kFirstGate + kGates;
  static constexpr int kFirstSaved = cells::first_saved<Cell>(stage);
  static constexpr int kSavedEnd = kFirstSaved + Cell::kStageSaved[stage];
  static constexpr bool kIsLast = stage == Cell::kStages - 1;
  static constexpr bool kIsProjection = cells::is_projection<Cell>(stage);
  static constexpr bool kHasH = cells::has_h<Cell>(stage), kHasC = cells::has_c<Cell>(stage);
  static constexpr bool kMakesC = Cell::kHasCellState && stage == Cell::kStages - 1 - Cell::kIsProjected;
};

// A cell's units in the tensors of a problem: hidden ones, and those of h.
template <class Cell>
struct UnitsOf {
  static constexpr bool kDiffer = Cell::kIsProjected;

  template <class Problem>
  static SEQKERNELS_DEVICE int outputs(const Problem& p) {
    if constexpr (kDiffer)
      return p.projection.outputs;
    else
      return p.shape.hidden;
  }
  static SEQKERNELS_DEVICE int output(const UnitCoord& at) { return kDiffer ? at.output : at.unit; }
  // The larger one of their numbers.
  template <class Problem>
  static SEQKERNELS_DEVICE int most(const Problem& p) {
    return kDiffer && outputs(p) > p.shape.hidden ? outputs(p) : p.shape.hidden;
  }

  // Units that a stage makes, and which of them is the one at hand.
  template <int stage, class Problem>
  static SEQKERNELS_DEVICE int made(const Problem& p) {
    return StageOf<Cell, stage>::kIsProjection ? outputs(p) : p.shape.hidden;
  }
  template <int stage>
  static SEQKERNELS_DEVICE int unit(const UnitCoord& at) {
    return StageOf<Cell, stage>::kIsProjection ? at.output : at.unit;
  }
  template <int stage, class Problem>
  static SEQKERNELS_DEVICE bool exists(const Problem& p, const UnitCoord& at) {
    return unit<stage>(at) < made<stage>(p);
  }

  // Of what has a unit of one kind at least: whether it has one that the stage makes, one of h, one of c.
  template <int stage, class Problem>
  static SEQKERNELS_DEVICE bool has(const Problem& p, const UnitCoord& at) {
    return !kDiffer || exists<stage>(p, at);
  }
  template <class Problem>
  static SEQKERNELS_DEVICE bool has_h(const Problem& p, const UnitCoord& at) {
    return has<Cell::kStages - 1>(p, at);
  }
  template <class Problem>
  static SEQKERNELS_DEVICE bool has_c(const Problem& p, const UnitCoord& at) {
    return has<0>(p, at);
  }

  // Indices of [D, B, P], [D, B, H] and [R, D, P].
  template <class Problem>
  static SEQKERNELS_DEVICE int64_t h_index(const Problem& p, const UnitCoord& at) {
    return state_index(p.shape, at, outputs(p), output(at));
  }
  template <class Problem>
  static SEQKERNELS_DEVICE int64_t c_index(const Problem& p, const UnitCoord& at) {
    return state_index(p.shape, at, p.shape.hidden, at.unit);
  }
  template <class Problem>
  static SEQKERNELS_DEVICE int64_t output_index(const Problem& p, const UnitCoord& at, int64_t row) {
    return cuda::output_index(p.shape, at, row, outputs(p), output(at));
  }
};

// What the kernels of a cell are told.
template <class Cell, class Problem, bool is_projected = Cell::kIsProjected>
struct ProblemOf {
  using type = Problem;
};
template <class Cell, class Problem>
struct ProblemOf<Cell, Problem, true> {
  using type = Projected<Problem>;
};

// What a pass has of a unit from one iteration to the next: two parts of a state, and saved values for later stages.
template <class R, int carried_values>
struct UnitState {
  R h, c;
  R carried[carried_values];
};
template <class R>
struct UnitState<R, 0> {
  R h, c;
};

}  // namespace seqkernels::cuda
