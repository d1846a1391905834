// The pointwise part of a step for one hidden unit of one sequence: what it reads, the cell, what it writes. Both the
// persistent and the stepwise kernels run it; they differ in where the product with W_hh comes from.
//
// A pass (Forward, Backward) is a template on the cell and the element type with
//   kIsBackward whether it is the backward pass
//   kTiles      row blocks of the matrix that it multiplies with: a pass's product has one value per unit for each
//   kPublished  values per unit that the next step's product reads
//   Reader      where a step's inputs are for one unit, and `load`, which brings them (early: they arrive while the product
//               is under way)
//   step        a step: product in, state updated, `published` and results out
//   Writer      where a step's results go for one unit, and `write` (late, so that nobody waits for memory who waits for what
//               is published)
//   idle        what stands in for `step` where there is none: a sequence that has ended or not begun
//   finish      writes the final state
// Readers and writers hold pointers that move along from step to step (Walk): nothing is multiplied out again in the loop.
//
// Steps are numbered as the pass does them. Of n steps, iteration i of 0..n does number i - 1 going forward (iteration 0
// publishes the initial state), and number i going back (iteration n has the last product).
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
};

template <class T>
SEQKERNELS_DEVICE auto read(const void* base, int64_t index) {
  return to_real(static_cast<const T*>(base)[index]);
}

template <class T>
SEQKERNELS_DEVICE void write(void* base, int64_t index, Real<T> value) {
  static_cast<T*>(base)[index] = from_real<T>(value);
}

// Moves a pointer by so many rows of so many elements: one multiply-add, of bytes.
template <class T>
SEQKERNELS_DEVICE void move_rows(T*& pointer, int rows, int elements) {
  const int64_t bytes = static_cast<int64_t>(rows) * (elements * static_cast<int>(sizeof(T)));
  pointer =
      (T*)((const char*)pointer + bytes);  // not by way of integers, or it would forget that it is of global memory
}

SEQKERNELS_DEVICE int64_t state_index(const Shape& shape, const UnitCoord& at) {
  return (static_cast<int64_t>(at.direction) * shape.batch + at.column) * shape.hidden + at.unit;
}

SEQKERNELS_DEVICE int64_t output_index(const Shape& shape, const UnitCoord& at, int64_t row) {
  return (row * shape.directions + at.direction) * shape.hidden + at.unit;
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
        time_(time),
        sign_(sign),
        left_(static_cast<int>(steps) - 1),
        active_(steps > 0 ? shape.active(time) : 0) {
    look_ahead();
  }

  // Sequences, the first ones of the batch, that have this step; that have the next one: none behind the last.
  SEQKERNELS_DEVICE int active() const { return active_; }
  SEQKERNELS_DEVICE int next() const { return next_; }
  SEQKERNELS_DEVICE int64_t time() const { return time_; }
  // Rows from that of a sequence's step at hand to that of its next.
  SEQKERNELS_DEVICE int rows() const { return sign_ > 0 ? active_ : -next_; }

  SEQKERNELS_DEVICE void advance() {
    active_ = next_, time_ += sign_, --left_;
    look_ahead();
  }

 private:
  SEQKERNELS_DEVICE void look_ahead() {
    next_ = left_ > 0 ? active_ : 0;
    if (offsets_ && left_ > 0) next_ = static_cast<int>(offsets_[time_ + sign_ + 1] - offsets_[time_ + sign_]);
  }

  const int64_t* offsets_;
  int64_t time_;
  int sign_, left_, active_, next_ = 0;
};

template <class CellType, class T>
struct Forward {
  using Cell = CellType;
  using Element = T;
  using Problem = ForwardProblem;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr bool kIsBackward = false;
  static constexpr int kTiles = Cell::kGates, kPublished = 1;
  static constexpr int kSaved = Cell::kSaved == 0 ? 1 : Cell::kSaved;

  struct State {
    R h;  // as the element type has it
    R c;
  };

  // Where the two sides of a gate simply add up, so do their biases, and `hidden` has none.
  struct Biases {
    R input[Cell::kGates], hidden[Cell::kGates];
  };
  SEQKERNELS_DEVICE static constexpr bool adds_up(int gate) {
    return Cell::input_dgate(gate) == Cell::hidden_dgate(gate);
  }

  struct Inputs {
    R gates[Cell::kGates];
  };

  static SEQKERNELS_DEVICE int64_t steps(const Problem& p) { return p.steps; }
  static SEQKERNELS_DEVICE int64_t step_of(const Problem& p, int64_t iteration) { return p.first_step + iteration - 1; }
  static SEQKERNELS_DEVICE bool has_step(const Problem&, int64_t iteration) { return iteration > 0; }
  static SEQKERNELS_DEVICE int64_t time_of(const Problem& p, int direction, int64_t step) {
    return p.shape.time_of(direction, step);
  }
  // The steps from `step` on.
  static SEQKERNELS_DEVICE Walk walk(const Problem& p, int direction, int64_t step) {
    return {p.shape, time_of(p, direction, step), direction == 0 ? 1 : -1, p.first_step + p.steps - step};
  }

  static SEQKERNELS_DEVICE Biases load_biases(const Problem& p, int direction, int unit) {
    Biases biases;
    SEQKERNELS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t row = static_cast<int64_t>(g) * p.shape.hidden + unit;
      biases.input[g] = p.b_ih[direction] ? read<T>(p.b_ih[direction], row) : R(0);
      biases.hidden[g] = p.b_hh[direction] ? read<T>(p.b_hh[direction], row) : R(0);
      if (adds_up(g)) biases.input[g] += biases.hidden[g], biases.hidden[g] = 0;
    }
    return biases;
  }

  // The state that these steps begin with.
  static SEQKERNELS_DEVICE State initial(const Problem& p, const UnitCoord& at) {
    const int64_t index = state_index(p.shape, at);
    State state{read<T>(p.first_step == 0 ? p.h0 : p.h_n, index), R(0)};
    if constexpr (Cell::kHasCellState)
      state.c = p.first_step == 0 ? read<T>(p.c0, index) : static_cast<const R*>(p.c_carry)[index];
    return state;
  }

  class Reader {
   public:
    SEQKERNELS_DEVICE Reader(const Problem& p, const UnitCoord& at, int64_t time) {
      // The rows at hand begin with the earliest time of these steps.
      const int64_t begin = at.direction == 0 ? p.first_step : p.shape.seq_len - p.first_step - p.steps;
      const int64_t row = p.shape.first_row(time) - p.shape.first_row(begin) + at.column;
      gates_ = static_cast<const R*>(p.input_gates[at.direction]) + row * Cell::kGates * p.shape.hidden + at.unit;
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) { move_rows(gates_, rows, Cell::kGates * p.shape.hidden); }

    // Loads the inputs of the unit that is `unit` further.
    SEQKERNELS_DEVICE Inputs load(const Problem& p, const Walk&, const UnitCoord&, int unit) const {
      Inputs inputs;
      SEQKERNELS_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) inputs.gates[g] = gates_[g * p.shape.hidden + unit];
      return inputs;
    }
    // Has L2 fetch what a later step loads.
    SEQKERNELS_DEVICE void prefetch(const Problem& p, int unit) const {
      SEQKERNELS_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) cuda::prefetch(gates_ + g * p.shape.hidden + unit);
    }

   private:
    const R* gates_;
  };

  struct Results {  // but for the state
    R saved[kSaved];
  };

  static SEQKERNELS_DEVICE Results step(const Biases& biases, const Inputs& inputs, const R (&product)[kTiles],
                                        State& state, R (&published)[kPublished]) {
    V input_gates[Cell::kGates], hidden_gates[Cell::kGates], saved[kSaved];
    SEQKERNELS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) {
      input_gates[g] = inputs.gates[g] + biases.input[g];
      hidden_gates[g] = adds_up(g) ? product[g] : product[g] + biases.hidden[g];
    }
    const cells::State<V> now = Cell::forward(cells::Stage<0>(), input_gates, hidden_gates, cells::State<V>{state.h, state.c}, saved);
    Results results{};
    published[0] = state.h = to_real(from_real<T>(now.h.v));
    if constexpr (Cell::kHasCellState) state.c = now.c.v;
    SEQKERNELS_UNROLL
    for (int k = 0; k < Cell::kSaved; ++k) results.saved[k] = saved[k].v;
    return results;
  }

  class Writer {
   public:
    SEQKERNELS_DEVICE Writer(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column;
      output_ = static_cast<T*>(p.output) + output_index(p.shape, at, row);
      gates_ = static_cast<T*>(p.gates) + saved_index(p.shape, at, row, Cell::kSaved);
      if constexpr (Cell::kHasCellState) cells_ = static_cast<R*>(p.cells) + saved_index(p.shape, at, row, 1);
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      const int padded = p.shape.padded;
      move_rows(output_, rows, p.shape.directions * p.shape.hidden);
      if constexpr (Cell::kSaved > 0) move_rows(gates_, rows, Cell::kSaved * padded);
      if constexpr (Cell::kHasCellState) move_rows(cells_, rows, padded);
    }

    SEQKERNELS_DEVICE void write(const Problem& p, int unit, const State& state, const Results& results) const {
      output_[unit] = from_real<T>(state.h);
      if constexpr (Cell::kSaved > 0) {
        if (!p.gates) return;  // nothing is saved, no cell states either
        SEQKERNELS_UNROLL
        for (int k = 0; k < Cell::kSaved; ++k) gates_[k * p.shape.padded + unit] = from_real<T>(results.saved[k]);
        if constexpr (Cell::kHasCellState) cells_[unit] = state.c;
      }
    }

   private:
    T *output_, *gates_;
    R* cells_;
  };

  static SEQKERNELS_DEVICE void idle(const R (&)[kTiles], State& state, R (&published)[kPublished]) {
    published[0] = state.h;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const UnitCoord& at, const State& state) {
    const int64_t index = state_index(p.shape, at);
    write<T>(p.h_n, index, state.h);
    if constexpr (Cell::kHasCellState) {
      write<T>(p.c_n, index, state.c);
      static_cast<R*>(p.c_carry)[index] = state.c;
    }
  }
};

template <class CellType, class T>
struct Backward {
  using Cell = CellType;
  using Element = T;
  using Problem = BackwardProblem;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr bool kIsBackward = true;
  static constexpr int kTiles = 1, kPublished = Cell::kGates;
  static constexpr int kSaved = Cell::kSaved == 0 ? 1 : Cell::kSaved;

  struct State {  // gradients that flow to the state before a step
    R h;          // without those that go through the product with W_hh
    R c;
  };

  struct Biases {};

  struct Inputs {
    R grad_output;
    R saved[kSaved];
    cells::State<V> prev, now;
  };

  static SEQKERNELS_DEVICE Biases load_biases(const Problem&, int, int) { return {}; }

  static SEQKERNELS_DEVICE State initial(const Problem& p, const UnitCoord& at) {
    const int64_t index = state_index(p.shape, at);
    return {p.grad_h_n ? read<T>(p.grad_h_n, index) : R(0), p.grad_c_n ? read<T>(p.grad_c_n, index) : R(0)};
  }

  static SEQKERNELS_DEVICE int64_t steps(const Problem& p) { return p.shape.seq_len; }
  static SEQKERNELS_DEVICE int64_t step_of(const Problem&, int64_t iteration) { return iteration; }
  static SEQKERNELS_DEVICE bool has_step(const Problem& p, int64_t iteration) { return iteration < p.shape.seq_len; }
  // Step 0 is the last that forward did.
  static SEQKERNELS_DEVICE int64_t time_of(const Problem& p, int direction, int64_t step) {
    return p.shape.time_of(direction, p.shape.seq_len - 1 - step);
  }
  static SEQKERNELS_DEVICE Walk walk(const Problem& p, int direction, int64_t step) {
    return {p.shape, time_of(p, direction, step), direction == 0 ? -1 : 1, p.shape.seq_len - step};
  }

  class Reader {
   public:
    SEQKERNELS_DEVICE Reader(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column, index = output_index(p.shape, at, row);
      grad_output_ = static_cast<const T*>(p.grad_output) + index;
      gates_ = static_cast<const T*>(p.gates) + saved_index(p.shape, at, row, Cell::kSaved);
      if constexpr (Cell::kBackwardReadsH) output_ = static_cast<const T*>(p.output) + index;
      if constexpr (Cell::kHasCellState) cells_ = static_cast<const R*>(p.cells) + saved_index(p.shape, at, row, 1);
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      const int wide = p.shape.directions * p.shape.hidden, padded = p.shape.padded;
      move_rows(grad_output_, rows, wide);
      if constexpr (Cell::kSaved > 0) move_rows(gates_, rows, Cell::kSaved * padded);
      if constexpr (Cell::kBackwardReadsH) move_rows(output_, rows, wide);
      if constexpr (Cell::kHasCellState) move_rows(cells_, rows, padded);
    }

    // Loads the inputs of the unit that is `unit` further; `at`: which that is. The state before a step is that after the
    // step which comes next in this pass, or, for who has none, the one that the sequence began with.
    SEQKERNELS_DEVICE Inputs load(const Problem& p, const Walk& walk, const UnitCoord& at, int unit) const {
      const Shape& shape = p.shape;
      const bool inner = at.column < walk.next();
      Inputs inputs{};
      if (p.grad_output) inputs.grad_output = to_real(grad_output_[unit]);
      SEQKERNELS_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) inputs.saved[k] = to_real(gates_[k * shape.padded + unit]);
      if constexpr (Cell::kBackwardReadsH) {
        const T* before = output_;
        move_rows(before, walk.rows(), shape.directions * shape.hidden);
        if (!inner) before = static_cast<const T*>(p.h0) + state_index(shape, at) - unit;
        inputs.now.h = to_real(output_[unit]);
        inputs.prev.h = to_real(before[unit]);
      }
      if constexpr (Cell::kHasCellState) {
        const R* before = cells_;
        move_rows(before, walk.rows(), shape.padded);
        inputs.now.c = cells_[unit];
        if (inner)
          inputs.prev.c = before[unit];
        else
          inputs.prev.c = read<T>(p.c0, state_index(shape, at));
      }
      return inputs;
    }
    // States are loaded a step ahead as those before another.
    SEQKERNELS_DEVICE void prefetch(const Problem& p, int unit) const {
      if (p.grad_output) cuda::prefetch(grad_output_ + unit);
      SEQKERNELS_UNROLL
      for (int k = 0; k < Cell::kSaved; ++k) cuda::prefetch(gates_ + k * p.shape.padded + unit);
    }

   private:
    const T *grad_output_, *gates_, *output_;
    const R* cells_;
  };

  struct Results {
    R dgates[Cell::kDgates];
  };

  static SEQKERNELS_DEVICE Results step(const Biases&, const Inputs& inputs, const R (&product)[kTiles], State& state,
                                        R (&published)[kPublished]) {
    V saved[kSaved], dgates[Cell::kDgates];
    SEQKERNELS_UNROLL
    for (int k = 0; k < kSaved; ++k) saved[k] = inputs.saved[k];
    const cells::State<V> grad{state.h + product[0] + inputs.grad_output, state.c};
    const cells::State<V> grad_prev = Cell::backward(cells::Stage<0>(), saved, inputs.prev, inputs.now, grad, dgates);
    state.h = grad_prev.h.v;
    if constexpr (Cell::kHasCellState) state.c = grad_prev.c.v;
    Results results{};
    SEQKERNELS_UNROLL
    for (int k = 0; k < Cell::kDgates; ++k) results.dgates[k] = dgates[k].v;
    SEQKERNELS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) published[g] = results.dgates[Cell::hidden_dgate(g)];
    return results;
  }

  class Writer {
   public:
    SEQKERNELS_DEVICE Writer(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column;
      const int64_t index = (row * p.shape.directions + at.direction) * Cell::kGates * p.shape.hidden + at.unit;
      input_dgates_ = static_cast<T*>(p.input_dgates) + index;
      if constexpr (kDiffer) hidden_dgates_ = static_cast<T*>(p.hidden_dgates) + index;
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      const int wide = p.shape.directions * Cell::kGates * p.shape.hidden;
      move_rows(input_dgates_, rows, wide);
      if constexpr (kDiffer) move_rows(hidden_dgates_, rows, wide);
    }

    SEQKERNELS_DEVICE void write(const Problem& p, int unit, const State&, const Results& results) const {
      SEQKERNELS_UNROLL
      for (int g = 0; g < Cell::kGates; ++g) {
        const int at = g * p.shape.hidden + unit;
        input_dgates_[at] = from_real<T>(results.dgates[Cell::input_dgate(g)]);
        if constexpr (kDiffer) hidden_dgates_[at] = from_real<T>(results.dgates[Cell::hidden_dgate(g)]);
      }
    }

   private:
    static constexpr bool kDiffer = Cell::kDgates > Cell::kGates;
    T *input_dgates_, *hidden_dgates_;
  };

  static SEQKERNELS_DEVICE void idle(const R (&product)[kTiles], State& state, R (&published)[kPublished]) {
    state.h = state.h + product[0];
    SEQKERNELS_UNROLL
    for (int g = 0; g < Cell::kGates; ++g) published[g] = 0;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const UnitCoord& at, const State& state) {
    const int64_t index = state_index(p.shape, at);
    if (p.grad_h0) write<T>(p.grad_h0, index, state.h);
    if constexpr (Cell::kHasCellState)
      if (p.grad_c0) write<T>(p.grad_c0, index, state.c);
  }
};

}  // namespace seqkernels::cuda
