// The pointwise part of a step for one hidden unit of one sequence: what it reads, the cell, what it writes. Both the
// persistent and the stepwise kernels run it; they differ in where the product with W_hh comes from.
//
// A pass (Forward, Backward) is a template on the cell and the element type with
//   kTiles      row blocks of the matrix that it multiplies with: a pass's product has one value per unit for each
//   kPublished  values per unit that the next step's product reads
//   load        everything a step reads from memory (early, so that it arrives while the product is under way)
//   step        a step: product in, state updated, `published` and results out
//   write_results  writes them (late, so that nobody waits for memory who waits for what is published)
//   idle        what stands in its place where there is no step: a sequence that has ended or not begun
//   finish      writes the final state
// Steps are numbered as the pass does them. Of n steps, iteration i of 0..n does number i - 1 going forward (iteration 0
// publishes the initial state), and number i going back (iteration n has the last product).
#pragma once
#include "../cells/cell.h"
#include "numbers.cuh"
#include "problem.h"

namespace seqkernels::cuda {

// Where one unit of one sequence stands.
struct Place {
  int direction, column, unit;  // column: the sequence
};

template <class T>
SEQKERNELS_DEVICE auto read(const void* base, int64_t index) {
  return to_real(static_cast<const T*>(base)[index]);
}

// How a pass's `load` gets at memory: it reads, or has what a later step will read fetched from far away.
struct Reads {
  template <class T>
  static SEQKERNELS_DEVICE auto get(const void* base, int64_t index) {
    return read<T>(base, index);
  }
};
struct Prefetches {
  template <class T>
  static SEQKERNELS_DEVICE Real<T> get(const void* base, int64_t index) {
    prefetch(static_cast<const T*>(base) + index);
    return 0;
  }
};

template <class T>
SEQKERNELS_DEVICE void write(void* base, int64_t index, Real<T> value) {
  static_cast<T*>(base)[index] = from_real<T>(value);
}

SEQKERNELS_DEVICE int64_t state_index(const Shape& shape, const Place& at) {
  return (static_cast<int64_t>(at.direction) * shape.batch + at.column) * shape.hidden + at.unit;
}

SEQKERNELS_DEVICE int64_t output_index(const Shape& shape, const Place& at, int64_t row) {
  return (row * shape.directions + at.direction) * shape.hidden + at.unit;
}

// Of saved value number `block` of `blocks`.
SEQKERNELS_DEVICE int64_t saved_index(const Shape& shape, const Place& at, int64_t row, int blocks, int block) {
  return ((at.direction * shape.rows + row) * blocks + block) * padded_units(shape.hidden) + at.unit;
}

template <class CellType, class T>
struct Forward {
  using Cell = CellType;
  using Element = T;
  using Problem = ForwardProblem;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr int kTiles = Cell::kGates, kPublished = 1;
  static constexpr int kSaved = Cell::kSaved == 0 ? 1 : Cell::kSaved;

  struct State {
    R h;  // as the element type has it
    R c;
  };

  struct Biases {
    R input[Cell::kGates], hidden[Cell::kGates];
  };

  struct Inputs {
    R gates[Cell::kGates];
  };

  static SEQKERNELS_DEVICE int64_t steps(const Problem& p) { return p.steps; }
  static SEQKERNELS_DEVICE int64_t step_of(const Problem& p, int64_t iteration) { return p.first_step + iteration - 1; }
  static SEQKERNELS_DEVICE bool has_step(const Problem&, int64_t iteration) { return iteration > 0; }
  static SEQKERNELS_DEVICE int64_t time_of(const Problem& p, int direction, int64_t step) {
    return p.shape.time_of(direction, step);
  }

  static SEQKERNELS_DEVICE Biases load_biases(const Problem& p, int direction, int unit) {
    Biases biases;
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t row = static_cast<int64_t>(g) * p.shape.hidden + unit;
      biases.input[g] = p.b_ih[direction] ? read<T>(p.b_ih[direction], row) : R(0);
      biases.hidden[g] = p.b_hh[direction] ? read<T>(p.b_hh[direction], row) : R(0);
    }
    return biases;
  }

  // The state that these steps begin with.
  static SEQKERNELS_DEVICE State initial(const Problem& p, const Place& at) {
    const int64_t index = state_index(p.shape, at);
    State state{read<T>(p.first_step == 0 ? p.h0 : p.h_n, index), R(0)};
    if constexpr (Cell::kHasCellState)
      state.c = p.first_step == 0 ? read<T>(p.c0, index) : static_cast<const R*>(p.c_carry)[index];
    return state;
  }

  template <class Access = Reads>
  static SEQKERNELS_DEVICE Inputs load(const Problem& p, const Place& at, int64_t step) {
    const int64_t time = time_of(p, at.direction, step);
    // The rows at hand begin with the earliest time of these steps.
    const int64_t begin = at.direction == 0 ? p.first_step : p.shape.seq_len - p.first_step - p.steps;
    const int64_t row = p.shape.first_row(time) - p.shape.first_row(begin) + at.column;
    Inputs inputs;
    for (int g = 0; g < Cell::kGates; ++g)
      inputs.gates[g] =
          Access::template get<R>(p.input_gates[at.direction], (row * Cell::kGates + g) * p.shape.hidden + at.unit);
    return inputs;
  }

  struct Results {  // but for the state
    R saved[kSaved];
  };

  static SEQKERNELS_DEVICE Results step(const Biases& biases, const Inputs& inputs, const R (&product)[kTiles],
                                        State& state, R (&published)[kPublished]) {
    V input_gates[Cell::kGates], hidden_gates[Cell::kGates], saved[kSaved];
    for (int g = 0; g < Cell::kGates; ++g) {
      input_gates[g] = inputs.gates[g] + biases.input[g];
      hidden_gates[g] = product[g] + biases.hidden[g];
    }
    const cells::State<V> now = Cell::forward(input_gates, hidden_gates, cells::State<V>{state.h, state.c}, saved);
    Results results;
    published[0] = state.h = to_real(from_real<T>(now.h.v));
    if constexpr (Cell::kHasCellState) state.c = now.c.v;
    for (int k = 0; k < Cell::kSaved; ++k) results.saved[k] = saved[k].v;
    return results;
  }

  static SEQKERNELS_DEVICE void write_results(const Problem& p, const Place& at, int64_t step, const State& state,
                                              const Results& results) {
    const int64_t row = p.shape.first_row(time_of(p, at.direction, step)) + at.column;
    write<T>(p.output, output_index(p.shape, at, row), state.h);
    if constexpr (Cell::kSaved > 0)
      if (p.gates)
        for (int k = 0; k < Cell::kSaved; ++k)
          write<T>(p.gates, saved_index(p.shape, at, row, Cell::kSaved, k), results.saved[k]);
    if constexpr (Cell::kHasCellState)
      if (p.cells) static_cast<R*>(p.cells)[saved_index(p.shape, at, row, 1, 0)] = state.c;
  }

  static SEQKERNELS_DEVICE void idle(const R (&)[kTiles], State& state, R (&published)[kPublished]) {
    published[0] = state.h;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const Place& at, const State& state) {
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

  static SEQKERNELS_DEVICE State initial(const Problem& p, const Place& at) {
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

  template <class Access = Reads>
  static SEQKERNELS_DEVICE Inputs load(const Problem& p, const Place& at, int64_t step) {
    const Shape& shape = p.shape;
    const int64_t time = time_of(p, at.direction, step), before = at.direction == 0 ? time - 1 : time + 1;
    const int64_t row = shape.first_row(time) + at.column;
    // Whether forward had a step before this one, or began here with h0, c0.
    const bool inner = before >= 0 && before < shape.seq_len && at.column < shape.active(before);
    const int64_t row_before = inner ? shape.first_row(before) + at.column : 0;
    Inputs inputs{};
    if (p.grad_output) inputs.grad_output = Access::template get<T>(p.grad_output, output_index(shape, at, row));
    for (int k = 0; k < Cell::kSaved; ++k)
      inputs.saved[k] = Access::template get<T>(p.gates, saved_index(shape, at, row, Cell::kSaved, k));
    if constexpr (Cell::kBackwardReadsH) {
      inputs.now.h = Access::template get<T>(p.output, output_index(shape, at, row));
      inputs.prev.h = inner ? Access::template get<T>(p.output, output_index(shape, at, row_before))
                            : Access::template get<T>(p.h0, state_index(shape, at));
    }
    if constexpr (Cell::kHasCellState) {
      inputs.now.c = Access::template get<R>(p.cells, saved_index(shape, at, row, 1, 0));
      inputs.prev.c = inner ? Access::template get<R>(p.cells, saved_index(shape, at, row_before, 1, 0))
                            : Access::template get<T>(p.c0, state_index(shape, at));
    }
    return inputs;
  }

  struct Results {
    R dgates[Cell::kDgates];
  };

  static SEQKERNELS_DEVICE Results step(const Biases&, const Inputs& inputs, const R (&product)[kTiles], State& state,
                                        R (&published)[kPublished]) {
    V saved[kSaved], dgates[Cell::kDgates];
    for (int k = 0; k < kSaved; ++k) saved[k] = inputs.saved[k];
    const cells::State<V> grad{state.h + product[0] + inputs.grad_output, state.c};
    const cells::State<V> grad_prev = Cell::backward(saved, inputs.prev, inputs.now, grad, dgates);
    state.h = grad_prev.h.v;
    if constexpr (Cell::kHasCellState) state.c = grad_prev.c.v;
    Results results;
    for (int k = 0; k < Cell::kDgates; ++k) results.dgates[k] = dgates[k].v;
    for (int g = 0; g < Cell::kGates; ++g) published[g] = results.dgates[Cell::hidden_dgate(g)];
    return results;
  }

  static SEQKERNELS_DEVICE void write_results(const Problem& p, const Place& at, int64_t step, const State&,
                                              const Results& results) {
    const int64_t row = p.shape.first_row(time_of(p, at.direction, step)) + at.column;
    for (int g = 0; g < Cell::kGates; ++g) {
      const int64_t index = ((row * p.shape.directions + at.direction) * Cell::kGates + g) * p.shape.hidden + at.unit;
      write<T>(p.input_dgates, index, results.dgates[Cell::input_dgate(g)]);
      if (Cell::kDgates > Cell::kGates) write<T>(p.hidden_dgates, index, results.dgates[Cell::hidden_dgate(g)]);
    }
  }

  static SEQKERNELS_DEVICE void idle(const R (&product)[kTiles], State& state, R (&published)[kPublished]) {
    state.h = state.h + product[0];
    for (int g = 0; g < Cell::kGates; ++g) published[g] = 0;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const Place& at, const State& state) {
    const int64_t index = state_index(p.shape, at);
    if (p.grad_h0) write<T>(p.grad_h0, index, state.h);
    if constexpr (Cell::kHasCellState)
      if (p.grad_c0) write<T>(p.grad_c0, index, state.c);
  }
};

}  // namespace seqkernels::cuda
