// The backward pass of the pointwise part, whose terms are those of pointwise.cuh: from gradients of the state to those of the
// gates, which it publishes.
#pragma once
#include "pointwise.cuh"

namespace seqkernels::cuda {

template <class CellType, class T>
struct Backward {
  using Cell = CellType;
  using Element = T;
  using Problem = typename ProblemOf<Cell, BackwardProblem>::type;
  using Units = UnitsOf<Cell>;
  using R = Real<T>;
  using V = Value<R, is_short<T>>;
  static constexpr bool kIsBackward = true, kHasTransition = false;
  static constexpr int kStages = Cell::kStages, kCarried = 0;
  static constexpr int kReserved = cells::kReserved<Cell>, kSaved = kReserved == 0 ? 1 : kReserved;
  static_assert(kStages == 1 || Cell::kDgates == cells::first_gate<Cell>(kStages) || Cell::kNorm != cells::Norm::kNone,
                "a stage writes its own gates' dgates");

  static constexpr int kFinalStage = 0;
  template <int stage>
  struct Iteration {
    using Stage = StageOf<Cell, stage>;
    static constexpr int kTiles = 1, kFirstTile = 0, kRowBlocks = Stage::kIsProjection ? 1 : Cell::kGates;
    static constexpr int kReads = Stage::kGates, kFirstBlock = Stage::kIsProjection ? 0 : Stage::kFirstGate;
    static constexpr int kFollows = (stage + kStages - 1) % kStages, kPublisher = stage, kNext = kFollows;
  };

  // Gradients that flow to the state before a step, h without those that go through the product with W_hh; between stages,
  // what is left of the gradients for the stage before.
  using State = UnitState<R, kCarried>;

  struct Biases {};

  struct Inputs {
    R grad_output;
    R saved[kSaved];
    cells::State<V> prev, now;
  };
  struct Loaded {
    T grad_output;
    T saved[kSaved];
    T h_prev, h_now;
    R c_prev, c_now;
  };
  static SEQKERNELS_DEVICE Inputs inputs_of(const Problem&, const Loaded& loaded) {
    Inputs inputs{to_real(loaded.grad_output),
                  {},
                  {to_real(loaded.h_prev), loaded.c_prev},
                  {to_real(loaded.h_now), loaded.c_now}};
    SEQKERNELS_UNROLL
    for (int k = 0; k < kSaved; ++k) inputs.saved[k] = to_real(loaded.saved[k]);
    return inputs;
  }

  static SEQKERNELS_DEVICE Biases load_biases(const Problem&, int, int) { return {}; }

  static SEQKERNELS_DEVICE State initial(const Problem& p, const UnitCoord& at) {
    const int64_t h = Units::h_index(p, at), c = Units::c_index(p, at);
    return {p.grad_h_n && Units::has_h(p, at) ? read<T>(p.grad_h_n, h) : R(0),
            p.grad_c_n && Units::has_c(p, at) ? read<T>(p.grad_c_n, c) : R(0)};
  }

  static SEQKERNELS_DEVICE int64_t steps(const Problem& p) { return p.shape.seq_len; }
  static SEQKERNELS_DEVICE int64_t step_of(const Problem&, int64_t iteration) { return iteration / kStages; }
  static SEQKERNELS_DEVICE bool has_step(const Problem& p, int64_t iteration) {
    return iteration < p.shape.seq_len * kStages;
  }
  // Step 0 is the last that forward did.
  static SEQKERNELS_DEVICE int64_t time_of(const Problem& p, int direction, int64_t step) {
    return p.shape.time_of(direction, p.shape.seq_len - 1 - step);
  }
  static SEQKERNELS_DEVICE Walk walk(const Problem& p, int direction, int64_t step) {
    return {p.shape, time_of(p, direction, step), p.shape.is_reverse(direction) ? 1 : -1, p.shape.seq_len - step};
  }

  class Reader {
   public:
    SEQKERNELS_DEVICE Reader(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column, index = Units::output_index(p, at, row);
      grad_output_ = static_cast<const T*>(p.grad_output) + index;
      gates_ = static_cast<const T*>(p.gates) + saved_index(p.shape, at, row, kReserved);
      has_grad_output_ = p.grad_output != nullptr;
      if constexpr (Cell::kBackwardReadsH) {
        output_ = static_cast<const T*>(p.output) + index;
        h0_ = static_cast<const T*>(p.h0) + Units::h_index(p, at);
      }
      if constexpr (Cell::kHasCellState) {
        cells_ = static_cast<const R*>(p.cells) + saved_index(p.shape, at, row, 1);
        c0_ = static_cast<const T*>(p.c0) + Units::c_index(p, at);
      }
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      move_rows(grad_output_, rows, p.row_bytes.output);
      if constexpr (kReserved > 0) move_rows(gates_, rows, p.row_bytes.saved);
      if constexpr (Cell::kBackwardReadsH) move_rows(output_, rows, p.row_bytes.output);
      if constexpr (Cell::kHasCellState) move_rows(cells_, rows, p.row_bytes.cells);
    }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) {
      move(p, sequences);
      if constexpr (Cell::kBackwardReadsH) h0_ += sequences * Units::outputs(p);
      if constexpr (Cell::kHasCellState) c0_ += sequences * p.shape.hidden;
    }

    SEQKERNELS_DEVICE void hold() { has_grad_output_ = launder(has_grad_output_); }

    // Loads the inputs of a stage for the unit that is `unit` further; `at`: which that is. The state before a step is that
    // after the step which comes next in this pass, or, for who has none, the one that the sequence began with. `is_first`: it
    // has none, though there is a row. What a cell does not use of them, the compiler leaves out.
    template <int stage>
    SEQKERNELS_DEVICE Loaded load(const Problem& p, const Walk& walk, const UnitCoord& at, int unit,
                                  bool is_first = false) const {
      using Stage = StageOf<Cell, stage>;
      const bool inner = at.column < walk.next() && !is_first;
      Loaded loaded{};
      if constexpr (Stage::kIsLast)
        if (has_grad_output_) loaded.grad_output = grad_output_[unit];
      if constexpr (!Stage::kIsProjection) {
        SEQKERNELS_UNROLL
        for (int k = 0; k < kReserved; ++k) loaded.saved[k] = gates_[k * p.shape.padded + unit];
      }
      if constexpr (Cell::kBackwardReadsH && Stage::kHasH) {
        const T* before = output_;
        move_rows(before, walk.rows(), p.row_bytes.output);
        if (!inner) before = h0_;
        loaded.h_now = output_[unit];
        loaded.h_prev = before[unit];
      }
      if constexpr (Stage::kHasC) {
        const R* before = cells_;
        move_rows(before, walk.rows(), p.row_bytes.cells);
        loaded.c_now = cells_[unit];
        if (inner)
          loaded.c_prev = before[unit];
        else
          loaded.c_prev = to_real(c0_[unit]);
      }
      return loaded;
    }
    // States are loaded a step ahead as those before another.
    template <int stage>
    SEQKERNELS_DEVICE void prefetch(const Problem& p, int unit) const {
      using Stage = StageOf<Cell, stage>;
      if constexpr (Stage::kHasH)
        if (has_grad_output_) cuda::prefetch(grad_output_ + unit);
      if constexpr (!Stage::kIsProjection) {
        SEQKERNELS_UNROLL
        for (int k = 0; k < kReserved; ++k) cuda::prefetch(gates_ + k * p.shape.padded + unit);
      }
    }

   private:
    int has_grad_output_;
    const T *grad_output_, *gates_, *output_ = nullptr, *h0_ = nullptr, *c0_ = nullptr;
    const R* cells_ = nullptr;
  };

  struct Results {
    R dgates[Cell::kDgates];
  };

  // The product is that of the step before in this pass with the first stage, or the gradient of the stage's operand.
  template <int stage>
  static SEQKERNELS_DEVICE Results step(const Biases&, const Inputs& inputs, const R (&product)[1], State& state,
                                        R (&published)[StageOf<Cell, stage>::kGates]) {
    using Stage = StageOf<Cell, stage>;
    V saved[kSaved], dgates[Cell::kDgates];
    SEQKERNELS_UNROLL
    for (int k = 0; k < kSaved; ++k) saved[k] = inputs.saved[k];
    cells::State<V> left;
    if constexpr (Stage::kIsLast) {
      const cells::State<V> grad{state.h + product[0] + inputs.grad_output, state.c};
      left = Cell::backward(cells::Stage<stage>(), saved, inputs.prev, inputs.now, grad, dgates);
    } else {
      const cells::State<V> grad{state.h, state.c};
      left = Cell::backward(cells::Stage<stage>(), saved, inputs.prev, inputs.now, grad, V(product[0]), dgates);
    }
    if constexpr (Stage::kHasH) state.h = left.h.v;
    if constexpr (Stage::kHasC) state.c = left.c.v;
    Results results{};
    SEQKERNELS_UNROLL
    for (int k = Stage::kFirstGate; k < (kStages == 1 ? Cell::kDgates : Stage::kGatesEnd); ++k)
      results.dgates[k] = dgates[k].v;
    SEQKERNELS_UNROLL
    for (int g = 0; g < Stage::kGates; ++g) published[g] = results.dgates[Cell::hidden_dgate(Stage::kFirstGate + g)];
    return results;
  }

  class Writer {
   public:
    SEQKERNELS_DEVICE Writer(const Problem& p, const UnitCoord& at, int64_t time) {
      const int64_t row = p.shape.first_row(time) + at.column;
      const int64_t index = (row * p.shape.directions + at.direction) * Cell::kGates * p.shape.hidden + at.unit;
      input_dgates_ = static_cast<T*>(p.input_dgates) + index;
      if constexpr (kDiffer) hidden_dgates_ = static_cast<T*>(p.hidden_dgates) + index;
      if constexpr (Units::kDiffer)
        output_dgates_ = static_cast<T*>(p.projection.dgates) + Units::output_index(p, at, row);
    }
    SEQKERNELS_DEVICE void move(const Problem& p, int rows) {
      move_rows(input_dgates_, rows, p.row_bytes.dgates);
      if constexpr (kDiffer) move_rows(hidden_dgates_, rows, p.row_bytes.dgates);
      if constexpr (Units::kDiffer) move_rows(output_dgates_, rows, p.row_bytes.output);
    }
    SEQKERNELS_DEVICE void move_across(const Problem& p, int sequences) { move(p, sequences); }

    SEQKERNELS_DEVICE void hold() {}

    // Writes the results of a stage.
    template <int stage>
    SEQKERNELS_DEVICE void write(const Problem& p, int unit, const State&, const Results& results) const {
      using Stage = StageOf<Cell, stage>;
      SEQKERNELS_UNROLL
      for (int g = Stage::kFirstGate; g < Stage::kGatesEnd; ++g) {
        const int at = g * p.shape.hidden + unit;
        if constexpr (Stage::kIsProjection)
          output_dgates_[unit] = from_real<T>(results.dgates[Cell::hidden_dgate(g)]);
        else
          input_dgates_[at] = from_real<T>(results.dgates[Cell::input_dgate(g)]);
        if constexpr (kDiffer) hidden_dgates_[at] = from_real<T>(results.dgates[Cell::hidden_dgate(g)]);
      }
    }

   private:
    static constexpr bool kDiffer = !Cell::kIsProjected && Cell::kDgates > Cell::kGates;
    T *input_dgates_, *hidden_dgates_, *output_dgates_;
  };

  template <int stage>
  static SEQKERNELS_DEVICE void idle(const R (&product)[1], State& state,
                                     R (&published)[StageOf<Cell, stage>::kGates]) {
    if constexpr (StageOf<Cell, stage>::kIsLast) state.h = state.h + product[0];  // of the first stage, a step ago
    SEQKERNELS_UNROLL
    for (int g = 0; g < StageOf<Cell, stage>::kGates; ++g) published[g] = 0;
  }

  static SEQKERNELS_DEVICE void finish(const Problem& p, const UnitCoord& at, const State& state) {
    const int64_t h = Units::h_index(p, at), c = Units::c_index(p, at);
    if (p.grad_h0 && Units::has_h(p, at)) write<T>(p.grad_h0, h, state.h);
    if constexpr (Cell::kHasCellState)
      if (p.grad_c0 && Units::has_c(p, at)) write<T>(p.grad_c0, c, state.c);
  }
};

}  // namespace seqkernels::cuda
